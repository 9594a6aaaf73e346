"""Localization heads, where the head that looks is known and by plain transformers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from families.every import VLMS
from induction_case import grid_task, model
from PIL import Image

from vlm_lens import HookedVLM
from vlm_lens.errors import PointError
from vlm_lens.recipes import HeadsThatLook, RecipeError, Result
from vlm_lens.recipes.heads_that_look import localization_heads
from vlm_lens.tasks import Task

ASK = {"ask": "{input:.2}"}


@pytest.fixture(scope="module")
def result():
    recipe = HeadsThatLook(tasks=grid_task(), rows=8, pick_rows=4, heads=1, **ASK)
    return recipe, recipe.run(model(), progress=False)


def test_the_head_that_reads_the_cell_is_chosen_and_controls_fail(result):
    _, found = result
    table = found.table.set_index("heads")
    assert found.values["heads"] == "2.2"
    assert table.loc["chosen heads", ["hit", "mass"]].tolist() == pytest.approx([1, 1], abs=1e-3)
    assert table.loc["random heads", "hit"] == 0
    assert table.loc["chosen heads, another picture's object", "hit"] == 0
    assert set(table["chance"]) == {1 / 16}
    scaled = found.tables["scaled"].set_index(["heads", "factor"])
    assert scaled.loc[("chosen heads", 0.0), "right"] == 0
    assert scaled.loc[("chosen heads", 1.0), "right"] == 1
    assert (scaled.loc["random heads"]["right"] == 1).all()
    assert "yes" not in scaled
    best = found.scores().top(1).iloc[0]
    assert (best["layer"], best["head"]) == (2, 2)


def test_mass_entropy_and_scaling_are_those_of_plain_transformers(result):
    recipe, found = result
    vlm, task = model(), grid_task()
    hf = vlm.hf_model
    mass, spread = [], []
    hf.set_attn_implementation("eager")
    try:
        for row in task.validation[:4]:
            prompt = vlm.as_prompt(recipe.query(task, row))
            with torch.no_grad():
                out = hf(**prompt.inputs, output_attentions=True)
            patches = list(prompt.layout.image[0].positions)
            at = torch.stack([a[0, :, -1, patches] for a in out.attentions]).double()
            mass.append(at.sum(-1).numpy())
            p = at / at.sum(-1, keepdim=True).clamp_min(1e-300)
            spread.append(-(p * p.clamp_min(1e-300).log()).sum(-1).numpy())
    finally:
        hf.set_attn_implementation("sdpa")
    heads = found.tables["heads"]
    np.testing.assert_allclose(heads["mass"], np.mean(mass, 0).ravel(), atol=1e-5)
    np.testing.assert_allclose(heads["entropy"], np.mean(spread, 0).ravel(), atol=1e-4)
    prompt = vlm.as_prompt(recipe.query(task, task.test[0]))
    width = vlm.cfg.d_head

    def halve(module, args):
        z = args[0].clone()
        z[:, -1, 2 * width : 3 * width] *= 0.5
        return (z,)

    handle = hf.model.language_model.layers[2].self_attn.o_proj.register_forward_pre_hook(halve)
    try:
        with torch.no_grad():
            probs = hf(**prompt.inputs).logits[0, -1].softmax(-1)
    finally:
        handle.remove()
    rows = found.tables["scaled rows"]
    got = rows.query("row == 0 and factor == 0.5 and heads == 'chosen heads'")["p"].iloc[0]
    expected = float(probs[vlm.to_single_token(task.test[0].output)])
    assert got == pytest.approx(expected, rel=1e-3)


def test_heads_of_average_mass_with_the_least_entropy():
    mass = np.array([[0.9, 0.1], [0.5, 0.6]])
    spread = np.array([[2.0, 0.1], [0.2, 1.0]])
    assert localization_heads(mass, spread, 3) == [(1, 1), (0, 0)]
    assert localization_heads(mass, spread, 1) == [(1, 1)]


def test_the_share_of_yes_is_beside_the_accuracy_of_yes_and_no():
    """A model that cannot do the task: what it says is counted by running it."""
    vlm = HookedVLM.from_pretrained("toy-llava")
    grid = Task.load("grid-color")
    answers = ("yes", "no")

    def asked(rows):
        return tuple(replace(row, output=answers[i % 2], aliases=()) for i, row in enumerate(rows))

    task = Task("grid-yes", "Is it red:", asked(grid.validation[:3]), asked(grid.test[:4]))
    recipe = HeadsThatLook(tasks=task, rows=4, pick_rows=2, heads=2, factors=(1.0,))
    found = recipe.run(vlm, progress=False).tables["scaled"].set_index("heads")
    said = [
        vlm.tokenizer.decode([int(vlm.run(recipe.query(task, row))[0, -1].argmax())]).strip()
        for row in task.test
    ]
    right = [s == row.output for s, row in zip(said, task.test, strict=True)]
    assert found.loc["chosen heads", "yes"] == np.mean([s == "yes" for s in said])
    assert found.loc["chosen heads", "right"] == np.mean(right)


def test_it_saves_and_draws_itself(result, tmp_path):
    _, found = result
    found.save(tmp_path / "out")
    again = Result.load(tmp_path / "out").scores()
    np.testing.assert_allclose(again.values, found.scores().values, rtol=1e-6)
    assert set(found.plots()) == {"heads", "hits", "scaled"}


def test_what_does_not_fit_is_refused(no_forward):
    vlm = model()
    no_forward(vlm)
    for fields, says in (
        ({"tasks": "country-capital"}, "not known which part"),
        ({"factors": (1.0, 1.0)}, "factors"),
        ({"heads": 0}, "heads is 0"),
    ):
        with pytest.raises(RecipeError, match=says):
            HeadsThatLook(**fields)
    with pytest.raises(RecipeError, match="has 9 heads"):
        HeadsThatLook(heads=5).run(vlm, progress=False)


def test_heads_are_of_the_blocks_that_attend(tmp_path):
    """Of a linear mixture and an attention in turn, the second's are said to be in block 1."""
    vlm = VLMS["qwen3_5"].load(tmp_path)
    prompt = vlm.prompt("<image>\nA:", [Image.effect_noise((48, 32), 90).convert("RGB")])

    class Shown(HeadsThatLook):
        def query(self, task, row):
            return prompt

    recipe = Shown(tasks=grid_task(), pick_rows=1, heads=1)
    found = recipe._heads_read(vlm, (grid_task(),))
    assert found["layer"].tolist() == [1] * vlm.cfg.n_heads and found["chosen"].sum() == 1
    name = "blocks.1.attn.hook_pattern"
    pattern = vlm.run_with_cache(prompt, names_filter=name)[1][name][0, :, -1]
    mass = pattern[:, list(prompt.layout.image[0].positions)].sum(-1)
    np.testing.assert_allclose(found["mass"], mass, rtol=1e-4)
    with pytest.raises(PointError, match="hook_z"):  # there is no output of heads to scale
        recipe.validate_for(vlm)
