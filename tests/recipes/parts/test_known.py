"""Rows that a model knows, against transformers' own generation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vlm_lens.recipes.parts.known import by_knowledge
from vlm_lens.tasks import Task, TaskError


def test_known_and_unknown_rows(toy):
    task = Task.load("food-color")
    wrong = [replace(row, output="Paris", aliases=()) for row in task.test[:3]]
    mixed = replace(task, test=(*wrong, *task.test[3:12]))
    known, unknown = by_knowledge(toy, mixed, batch_size=5)
    assert known.name == "food-color-known" and unknown.name == "food-color-unknown"
    assert {r.input for r in unknown.test} >= {row.input for row in wrong}
    assert len(known.test) + len(unknown.test) == 12
    assert known.validation == unknown.validation == task.validation
    tokenizer = toy.processor.tokenizer
    for row in mixed.test:
        ids = tokenizer(f"{task.instruction}\n\nQ:{row.input}\nA:", return_tensors="pt")
        with torch.no_grad():
            token = toy.hf_model.generate(
                **{k: ids[k] for k in ("input_ids", "attention_mask")}, max_new_tokens=1,
                do_sample=False,
            )[0, -1]  # fmt: skip
        said = tokenizer.decode([token]).strip()
        is_known = any(a.startswith(said) or said.startswith(a) for a in row.answers)
        assert (row in known.test) == is_known


def test_halves_without_rows(toy):
    task = Task.load("food-color")
    wrong = tuple(replace(row, output="Paris", aliases=()) for row in task.test[:2])
    nothing = replace(task, test=wrong)
    assert by_knowledge(toy, nothing) == (None, replace(nothing, name="food-color-unknown"))
    with pytest.raises(TaskError, match="no test rows"):
        by_knowledge(toy, replace(task, test=()))
