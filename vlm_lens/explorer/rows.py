"""Prompts and vectors of the tasks that ship with the package, for the explorer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch

from vlm_lens.errors import VLMLensError
from vlm_lens.explorer.read import Writable
from vlm_lens.recipes.parts.predict import first_tokens
from vlm_lens.recipes.parts.scoring import score
from vlm_lens.recipes.parts.vector_sources import Source, TaskVectors
from vlm_lens.tasks import Task

if TYPE_CHECKING:
    from vlm_lens.model.hooked_vlm import HookedVLM
    from vlm_lens.prompts.template import RawPrompt

Progress = Callable[[Iterable, str], Iterable]
_TRIED = 24  # test rows of a task of which the shown ones are chosen


def task_vectors(
    vlm: HookedVLM,
    tasks: Sequence[Task],
    source: Source = "text",
    progress: Progress = lambda items, what: items,
) -> dict[str, Writable]:
    """The vector of each task, read from examples of its validation rows.

    Args:
        vlm: The model.
        tasks: The tasks.
        source: Whether the examples are given by name, picture or description, or the task by its
            instruction.
        progress: What the tasks are passed through, with a word for what is done.

    Raises:
        VLMLensError: No such source.
    """
    if source not in get_args(Source):
        raise VLMLensError(f"source is one of {', '.join(get_args(Source))}, not {source!r}.")
    listed = progress(tasks, "task vectors")
    return {task.name: task_vector(vlm, task, source) for task in listed}


def task_vector(vlm: HookedVLM, task: Task, source: Source) -> Writable:
    """The vector of one task; see `task_vectors`."""
    return Writable(
        TaskVectors(vlm, source, batch_size=16)(task, 1),
        told(task, source),
        partial(_judge, vlm, task),
        {row.input: row.output for row in task.test},
    )


def told(task: Task, source: Source) -> str:
    """What a task's vector is read from, to follow "the vector was"."""
    if source == "instruction":
        return f"read from the instruction \u201c{task.instruction}\u201d"
    first = task.validation[0]
    given = {"text": "in text", "image": "as pictures", "description": "as descriptions"}[source]
    return (
        f"read from {len(task.validation)} prompts with examples {given}, such as "
        f"{first.input} \N{RIGHTWARDS ARROW} {first.output}"
    )


def _judge(vlm: HookedVLM, task: Task, tokens: torch.Tensor, name: str) -> np.ndarray | None:
    """Which tokens are a right answer to one row; None where the task has no such row."""
    row = next((row for row in task.test if row.input == name), None)
    if row is None:
        return None
    return score(vlm, tokens[:, None], [row.answers]).correct[:, 0]


def chosen_rows(
    vlm: HookedVLM,
    vectors: Mapping[str, Writable],
    tasks: Sequence[Task],
    each: int,
    progress: Progress = lambda items, what: items,
) -> dict[str, RawPrompt]:
    """Prompts to show: of each domain rows that the vectors answer, and one that fails.

    Rows come in the order of how many tasks of their domain are answered, each written after the
    block that is right most often for it.

    Args:
        vlm: The model.
        vectors: Task -> its vector.
        tasks: The tasks.
        each: How many rows of a domain.
        progress: What the domains are passed through, with a word for what is done.

    Returns:
        Input -> prompt, successes first.
    """
    domains, modality = _domains(tasks), _modality(vlm)
    found: list[tuple[float, dict[str, RawPrompt]]] = []
    for mine in progress(domains, "choosing rows"):
        rows = mine[0].test[:_TRIED]
        queries = [mine[0].query(row, modality) for row in rows]
        right = []
        for task in mine:
            writes = [vectors[task.name].write(block) for block in range(vlm.cfg.n_layers)]
            tokens = first_tokens(vlm, queries, writes)
            answers = [task[row.input].answers for row in rows]
            right.append(score(vlm, tokens, answers).correct)  # [block, row]
        best = [table[table.mean(1).argmax()] for table in right]
        answered = np.sum(best, axis=0)
        order = np.argsort(-answered, kind="stable")
        failed = answered[order[-1]] < len(mine) and each > 1
        shown = [*order[: each - failed], *order[len(order) - failed :]]
        found.append((answered[order[0]] / len(mine), {rows[i].input: queries[i] for i in shown}))
    found.sort(key=lambda one: -one[0])  # a domain that works comes first
    return {name: query for _, named in found for name, query in named.items()}


def first_rows(vlm: HookedVLM, tasks: Sequence[Task], each: int) -> dict[str, RawPrompt]:
    """The first test rows of each domain, without a run: input -> prompt."""
    modality = _modality(vlm)
    return {
        row.input: mine[0].query(row, modality)
        for mine in _domains(tasks)
        for row in mine[0].test[:each]
    }


def _domains(tasks: Sequence[Task]) -> list[list[Task]]:
    """Tasks whose rows have the same inputs, together."""
    domains: dict[str, list[Task]] = {}
    for task in tasks:
        domains.setdefault(task.domain or task.name, []).append(task)
    return list(domains.values())


def _modality(vlm: HookedVLM) -> Literal["image", "text"]:
    return "image" if vlm.family.takes_images else "text"
