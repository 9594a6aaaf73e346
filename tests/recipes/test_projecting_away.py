"""Projecting away the direction of an object's name, against plain hooks, with its controls."""

from __future__ import annotations

import pytest
import torch

from vlm_lens import HookedVLM
from vlm_lens.directions import internal_confidence
from vlm_lens.recipes import ProjectingAway, RecipeError
from vlm_lens.tasks import Task


@pytest.fixture(scope="module")
def vlm() -> HookedVLM:
    return HookedVLM.from_pretrained("toy-idefics2")


@pytest.mark.slow
def test_the_object_goes_and_the_controls_stay(vlm, tmp_path):
    result = ProjectingAway("animal-young", rows=8).run(vlm, progress=False)
    table = result.table
    assert list(table.columns) == ["layer", "plain", "own", "other", "random"]
    assert (table["random"] > table["plain"] - 0.1).all()
    drop = table["plain"] - table["own"]
    assert drop.max() > 0.4
    assert drop.max() > 2 * (table["plain"] - table["other"])[drop.idxmax()]
    assert result.values["auc"] > 0.8
    again = type(result).load(result.save(tmp_path / "saved"))
    assert again == result and result.plot() is not None

    row = next(r for r in Task.load("animal-young").test if r.image is not None)
    task, layer = Task.load("animal-young"), 1
    text, picture = (vlm.prompt(task.query(row, m)) for m in ("text", "image"))
    with torch.no_grad():
        states = vlm.hf_model(**text.inputs, output_hidden_states=True).hidden_states
    t = states[layer + 1][0, list(text.layout.span(row.input, -1))[-1]]

    def hook(module, inputs, output):
        new = output.clone()
        for p in picture.layout.image[0].positions:
            new[0, p] -= torch.clamp(new[0, p] @ t, min=0) / (t @ t) * t
        return new

    handle = vlm.hf_model.model.text_model.layers[layer].register_forward_hook(hook)
    with torch.no_grad():
        probs = vlm.hf_model(**picture.inputs).logits[0, -1].softmax(-1)
    handle.remove()
    each = result.tables["objects"]
    mine = each[(each.object == row.input) & (each.layer == layer) & (each.method == "own")]
    want = float(probs[vlm.to_first_token(row.input)])
    assert float(mine["prob"].iloc[0]) == pytest.approx(want, abs=1e-4)


def test_confidence_is_the_lens_at_patches(vlm):
    prompt = vlm.prompt(Task.load("animal-young").query("Cow", "image"))
    found = internal_confidence(vlm, prompt, ["Cow", "Bat"])
    assert found.axes == ("layer", "position", "token")
    with torch.no_grad():
        out = vlm.hf_model(**prompt.inputs, output_hidden_states=True)
        h = vlm.hf_model.model.text_model.norm(out.hidden_states[3][0])
        probs = vlm.hf_model.lm_head(h).softmax(-1)
    position = prompt.layout.image[0].positions[4]
    got = float(found.values.sel(layer=2, position=position, token="Cow"))
    assert got == pytest.approx(float(probs[position, vlm.to_first_token("Cow")]), abs=1e-5)


def test_fields_are_checked():
    with pytest.raises(RecipeError, match="rows"):
        ProjectingAway("animal-young", rows=1)
    with pytest.raises(RecipeError, match="task"):
        ProjectingAway("no-such-task")
