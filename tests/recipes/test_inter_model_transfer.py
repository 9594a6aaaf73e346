"""Vectors of another model, recomputed with plain transformers and plain torch hooks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from recipes.plain import QUERY, Plain, few_shot, right, small
from vlm_lens import HookedVLM
from vlm_lens.recipes import RecipeError, Result
from vlm_lens.recipes import inter_model_transfer as m
from vlm_lens.recipes.inter_model_transfer import InterModelTransfer
from vlm_lens.terms import PATCH_BASE, PATCH_UNRELATED

TASKS = tuple(map(small, ("food-color", "food-flavor")))
LAYER = 4


@pytest.fixture(scope="module")
def vicuna():
    return HookedVLM.from_pretrained("toy-vicuna")


@pytest.fixture(scope="module")
def result(toy, vicuna):
    # the VLM itself stands in for an unrelated model: its rows must then equal those of Patch
    recipe = InterModelTransfer(
        tasks=TASKS, seeds=1, layer=LAYER, source_model=vicuna, unrelated_model=toy
    )
    return recipe.run(toy, progress=False)


def test_accuracy_and_cosine_equal_plain_transformers(result):
    vlm, llm = Plain("toy-llava"), Plain("toy-vicuna")
    vectors = {}
    for task in TASKS:
        texts = few_shot(task.validation, seed=1)
        vectors[task.name] = llm.vector(texts), vlm.vector(texts)
    task, other = TASKS
    edit = vlm.put(LAYER, vectors[task.name][0][LAYER])
    said = [vlm.says(QUERY, [row.image], outputs=[edit]) for row in task.test]
    got = [s.strip() for s in result.predictions.query(
        "method == @PATCH_BASE and task == @task.name")["prediction"]]  # fmt: skip
    assert got == said
    expected = np.mean([right(s, r.answers) for s, r in zip(said, task.test, strict=True)])
    assert result.accuracy(PATCH_BASE, task.name) == pytest.approx(expected, abs=1e-12)
    for one, two in ((task, task), (task, other), (other, task)):
        mine = result.cosine_table("base", LAYER).query(
            "llm_task == @one.name and vlm_task == @two.name")["cosine"].item()  # fmt: skip
        a, b = vectors[one.name][0][LAYER], vectors[two.name][1][LAYER]
        assert mine == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)), abs=1e-5)
    assert result.cosine()["matched"] > 0.9 > result.cosine()["mismatched"]


def test_a_model_as_its_own_unrelated_model_gives_its_own_numbers(result):
    for task in (*(one.name for one in TASKS), "mean"):
        assert result.accuracy(PATCH_UNRELATED, task) == result.accuracy("Patch", task)
    assert result.cosine("unrelated")["matched"] == pytest.approx(1)
    assert result.accuracy("Wrong task, same domain, base LLM") < result.accuracy(PATCH_BASE)


def test_centered_cosines_are_those_of_what_differs_between_tasks(toy, vicuna):
    recipe = InterModelTransfer(tasks=(*TASKS, small("food-kind")), seeds=1)
    own, base = (recipe.paper().reader(model) for model in (toy, vicuna))
    tasks = recipe.chosen_tasks()
    table = m.cosines([(task, 1) for task in tasks], own, base, "base")
    a, b = (torch.stack([v(task, 1).layer(LAYER) for task in tasks]) for v in (base, own))
    a, b = (torch.nn.functional.normalize(x - x.mean(0), dim=-1) for x in (a, b))
    mine = table[table["layer"] == LAYER]["centered"].to_numpy().reshape(3, 3)
    np.testing.assert_allclose(mine, (a @ b.T).numpy(), atol=1e-5)


def test_names_files_and_figures(result, tmp_path):
    assert result.provenance["recipe"]["source_model"] == "toy-vicuna"
    assert result.values["models"]["base"] == "toy-vicuna"
    json.dumps(result.provenance)
    again = Result.load(result.save(tmp_path))
    assert type(again) is m.InterModelResult and again.cosine() == result.cosine()
    assert {"methods", "cosine_matrix", "cosine_layers"} <= set(again.plots())
    with pytest.raises(RecipeError, match="no cosines of 'none'"):
        result.cosine_table("none")


def test_the_base_model_of_the_zoo_and_of_the_checkpoints_is_known(toy, load):
    assert m.base_of(toy.name) == "toy-vicuna"
    with pytest.raises(RecipeError, match=r"InterModelTransfer\.source_model"):
        InterModelTransfer(tasks=TASKS).run(load("clip-llama"))


def test_what_does_not_fit_is_refused_before_any_run(toy, load, no_forward):
    no_forward(toy)
    with pytest.raises(RecipeError, match=r"unrelated_model: .* has d_model"):
        InterModelTransfer(tasks=TASKS, unrelated_model=load("llama")).run(toy)
    with pytest.raises(RecipeError, match=r"InterModelTransfer\.layer is 99"):
        InterModelTransfer(tasks=TASKS, layer=99).run(toy)
    with pytest.raises(RecipeError, match=r"InterModelTransfer\.source is 'image'"):
        InterModelTransfer(source="image")
    with pytest.raises(RecipeError, match=r"InterModelTransfer\.seeds"):
        InterModelTransfer(seeds=0)
    with pytest.raises(RecipeError, match=r"InterModelTransfer\.source_model is a int"):
        InterModelTransfer(source_model=3)


def test_an_instruction_runs_with_the_controls_that_it_has(toy, vicuna):
    recipe = InterModelTransfer(tasks=TASKS, source="instruction", layer=LAYER, source_model=vicuna)
    found = recipe.run(toy, progress=False)
    methods = set(found.table["method"])
    assert {PATCH_BASE, "Wrong task, same domain, base LLM"} <= methods
    assert "Shuffled labels, base LLM" not in methods
    llm, task = Plain("toy-vicuna"), TASKS[0]
    kept = []
    llm.logits(task.instruction, outputs=[(llm.blocks[LAYER], kept.append)])
    vlm = Plain("toy-llava")
    edit = vlm.put(LAYER, kept[0][0, -1])
    said = [vlm.says(QUERY, [row.image], outputs=[edit]) for row in task.test]
    got = found.predictions.query("method == @PATCH_BASE and task == @task.name")["prediction"]
    assert [text.strip() for text in got] == said
