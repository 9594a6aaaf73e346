"""Rows whose answer a model knows, told apart from those it does not.

A vector can only bring out what the model knows. A small real model knows some rows of a table, and
an accuracy over all of them mixes what it knows with what the vector does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.recipes.parts.predict import first_tokens
from vlm_lens.recipes.parts.scoring import score
from vlm_lens.recipes.parts.vector_sources import Query, few_shot
from vlm_lens.tasks import Split, Task, TaskError

__all__ = ["by_knowledge"]


def by_knowledge(
    vlm: HookedVLM, task: Task, *, query: Query = "text", batch_size: int = 32
) -> tuple[Task | None, Task | None]:
    """The task on the test rows that a model knows, and on the others.

    A row is known if the model answers it in zero-shot, after the instruction, by the prefix rule.
    The validation rows stay as they are: vectors are read from the same prompts.

    Args:
        vlm: The model.
        task: The task.
        query: Whether the rows are given by name, picture or description.
        batch_size: How many prompts run together.

    Returns:
        The task with the known test rows, `{name}-known`, and with the others, `{name}-unknown`;
        `None` in place of one that would have no rows.

    Raises:
        TaskError: The task has no test rows.
    """
    split: Split = get_args(Split)[1]
    rows = task.rows(split)
    if not rows:
        raise TaskError(f"The task {task.name!r} has no test rows to be told apart.")
    prompts = few_shot(task, "instruction", query, split=split)
    said = first_tokens(vlm, prompts, batch_size=batch_size)[0]
    right = score(vlm, said, [row.answers for row in rows]).correct
    halves = [
        (name, tuple(row for row, known in zip(rows, right, strict=True) if known == wanted))
        for name, wanted in (("known", True), ("unknown", False))
    ]
    known, unknown = (
        replace(task, name=f"{task.name}-{name}", test=some) if some else None
        for name, some in halves
    )
    return known, unknown
