"""Recipes on tiny random models of other architectures: every step runs where pictures differ."""

from __future__ import annotations

from dataclasses import replace

import pytest
from families import tiny_fuyu, tiny_idefics2

from vlm_lens import HookedVLM
from vlm_lens.recipes import CrossModalPatch, PhaseAnalysis, Qualitative, TaskSpace, TopDecodings
from vlm_lens.tasks import Task

BOTH = ("text", "image")


def tiny_task(name):
    task = Task.load(name)
    return replace(task, validation=task.validation[:4], test=task.test[:3])


TASKS = (tiny_task("food-color"), tiny_task("country-capital"))
RECIPES = (
    CrossModalPatch(TASKS, source="image", query="text", seeds=1, n_examples=2),
    PhaseAnalysis(TASKS[0], modality="image", runs=2, n_examples=2, task_token="a"),
    TopDecodings(TASKS, runs=2, n_examples=2),
    TaskSpace(TASKS, sources=BOTH, points=3, n_examples=2, relabellings=3),
    Qualitative(TASKS[0], rows=1, n_examples=2, max_new_tokens=2),
)


@pytest.fixture(scope="module", params=["idefics2", "mantis-fuyu"])
def vlm(request, tmp_path_factory) -> HookedVLM:
    save = {"idefics2": tiny_idefics2.save, "mantis-fuyu": tiny_fuyu.save}[request.param]
    return HookedVLM.from_pretrained(save(tmp_path_factory.mktemp(request.param)))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: type(r).__name__)
def test_it_runs_prints_and_draws(vlm, recipe):
    result = recipe.run(vlm, progress=False)
    assert len(result.table) and vlm.name in repr(result)
    assert all(len(figure.data) for figure in result.plots().values())
