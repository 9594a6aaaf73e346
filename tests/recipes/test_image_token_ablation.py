"""Image tokens replaced by their mean, where the right patch is known and by plain hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from induction_case import grid_task, model

from vlm_lens import HookedVLM
from vlm_lens.recipes import ImageTokenAblation, RecipeError, Result
from vlm_lens.tasks import Task

ASK = {"ask": "{input:.2}"}


@pytest.fixture(scope="module")
def result():
    recipe = ImageTokenAblation(tasks=grid_task(), rows=8, mean_rows=5, **ASK)
    return recipe, recipe.run(model(), progress=False)


def test_the_object_is_needed_and_the_controls_are_not(result):
    _, found = result
    table = found.table.set_index(["ablated", "ring"])
    for ring in (0, 1, 2):
        assert table.loc[("object", ring), "named"] == 0
        assert table.loc[("object", ring), "kept"] < 1e-6
        for control in ("random patches", "patches of largest norm", "all others"):
            assert table.loc[(control, ring), "named"] == 1
            assert table.loc[(control, ring), "kept"] == pytest.approx(1, abs=1e-4)
    assert table.loc[("object", 0), "tokens"] == 1 and table.loc[("all others", 0), "tokens"] == 15
    assert found.tables["pictures"][["named", "hangs on the pixels"]].all().all()


def test_numbers_are_those_of_plain_hooks(result):
    """The mean and the write by plain transformers: the input of the first block."""
    recipe, found = result
    vlm, task = model(), grid_task()
    first = vlm.hf_model.model.language_model.layers[0]
    seen, writes = [], []

    def hook(module, args, kwargs):
        x = (args[0] if args else kwargs["hidden_states"]).clone()
        for positions, value in writes:
            x[0, positions] = value
        seen.append(x)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    def logits(row):
        prompt = vlm.as_prompt(recipe.query(task, row))
        with torch.no_grad():
            return prompt, vlm.hf_model(**prompt.inputs).logits[0, -1]

    handle = first.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        tokens = []
        for row in task.validation[:5]:
            prompt, _ = logits(row)
            tokens.append(seen[-1][0, list(prompt.layout.image[0].positions)])
        mean = torch.cat(tokens).mean(0)
        rows = found.tables["rows"].set_index(["row", "ablated", "ring"])
        for number, row in enumerate(task.test[:3]):
            prompt, plain = logits(row)
            token = int(plain.argmax())
            grid, cell = prompt.layout.image[0].grid, divmod(
                prompt.layout.image[0].positions.index(row.patches(prompt.layout)[0]), 4
            )  # fmt: skip
            for ring in (0, 1):
                near = [
                    grid.patch(r, c)
                    for r in range(4)
                    for c in range(4)
                    if max(abs(r - cell[0]), abs(c - cell[1])) <= ring
                ]
                far = [p for p in grid.positions if p not in near]
                for name, positions in (("object", near), ("all others", far)):
                    writes[:] = [(positions, mean)]
                    _, cut = logits(row)
                    writes.clear()
                    kept = float(cut.softmax(-1)[token] / plain.softmax(-1)[token])
                    got = rows.loc[(number, name, ring)]
                    assert got["kept"] == pytest.approx(kept, rel=1e-3, abs=1e-8)
                    assert got["tokens"] == len(positions)
    finally:
        handle.remove()


def test_it_saves_and_draws_itself(result, tmp_path):
    _, found = result
    found.save(tmp_path / "out")
    again = Result.load(tmp_path / "out")
    np.testing.assert_allclose(again.table["kept"], found.table["kept"])
    assert [t.name for t in found.plots()["ablation"].data][0] == "object"


def test_what_does_not_fit_is_refused():
    for fields, says in (
        ({"tasks": "country-capital"}, "not known which part"),
        ({"rings": (0, -1)}, "0 or more"),
        ({"rings": ()}, "rings"),
        ({"ask": "{cell}"}, "the one thing to fill in"),
        ({"rows": 0}, "rows is 0"),
    ):
        with pytest.raises(RecipeError, match=says):
            ImageTokenAblation(**fields)
    with pytest.raises(RecipeError, match="names the object of none"):
        ImageTokenAblation(rows=2, mean_rows=2).run(
            HookedVLM.from_pretrained("toy-llava"), progress=False
        )
    with pytest.raises(RecipeError, match="is a patch of a picture"):
        ImageTokenAblation(rows=2).run(HookedVLM.from_pretrained("toy-idefics2"), progress=False)
    with pytest.raises(RecipeError, match="takes no pictures"):
        ImageTokenAblation(rows=2).run(HookedVLM.from_pretrained("toy-mistral"), progress=False)
    assert Task.load("grid-color").test[0].boxes
