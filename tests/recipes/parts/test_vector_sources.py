"""Prompts of each source, and that the open example is read like the paper's delimiter."""

from __future__ import annotations

import pytest
import torch

from vlm_lens import Find
from vlm_lens.reading.many import read_each
from vlm_lens.recipes.parts.vector_sources import TaskVectors, few_shot, last_rows, open_prompts
from vlm_lens.tasks import Task

TASK = "food-color"


@pytest.mark.parametrize("source", ["text", "image"])
def test_the_open_example_holds_what_the_papers_delimiter_holds(toy, source):
    task = Task.load(TASK)
    sets = task.example_sets(source, seed=2)[:4]
    theirs = read_each(toy, list(sets), at=Find(":", -3))
    vectors = TaskVectors(toy, source)
    mine = read_each(toy, list(vectors.prompts(task, 2)[:4]), at=Find(":", -1))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_open_prompts_are_the_papers_without_what_follows():
    task = Task.load(TASK)
    for mine, whole in zip(open_prompts(task, "text"), task.example_sets("text", seed=1),
                           strict=True):  # fmt: skip
        assert whole.text.startswith(mine.text) and mine.text.endswith("\nA:")
        assert (mine.text.count("A:"), whole.text.count("A:")) == (5, 6)
    assert open_prompts(task, "instruction")[0].text == "The color of the food:"


def test_the_mean_and_the_single_vector(toy):
    task, vectors = Task.load(TASK), TaskVectors(toy, "text", kind="single")
    each = vectors.each(task, 1)
    assert each.shape == (len(task.validation), toy.cfg.n_layers, toy.cfg.d_model)
    single = vectors(task, 1)
    assert len(single.prompts) == 1
    row = [p.text for p in vectors.prompts(task, 1)].index(single.prompts[0])
    torch.testing.assert_close(single.values, each[row], rtol=0, atol=0)
    mean = TaskVectors(toy, "text")(task, 1)
    torch.testing.assert_close(mean.values, each.double().mean(0).float())


def test_prompts_with_the_query_in_the_context():
    task = Task.load(TASK)
    told = few_shot(task, "instruction", "image")
    assert told[0].text == "The color of the food:\n\nQ:<image>\nA:" and len(told[0].images) == 1
    shown = few_shot(task, "text", "image", seed=3, n=2, split="validation")
    assert len(shown) == len(task.validation)
    assert shown[0] == task.example_sets("text", seed=3, target_modality="image", n=2)[0]


def test_descriptions_leave_out_rows_without_one(toy):
    from vlm_lens.recipes import CrossModalPatch

    task = Task.load(TASK)
    told = CrossModalPatch(tasks=TASK, source="description", query="image").chosen_tasks()[0]
    assert told.name == TASK and len(told) == len(task.described()) < len(task)
    prompts = open_prompts(task, "description")
    assert len(prompts) == len(told.validation)
    last = last_rows(task, "description")
    assert [p.text.split("Q:")[-1] for p in prompts] == [f"{r.description}\nA:" for r in last]
