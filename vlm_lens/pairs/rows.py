"""Pairs from the rows of tasks: another entity, or another question about the same one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from vlm_lens.errors import PositionError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.measures import MeasureError
from vlm_lens.measures.answers import check_apart
from vlm_lens.pairs.pair import Pair, PairError
from vlm_lens.pairs.pairs import Pairs
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.tasks.rows import Modality, Row, Split
from vlm_lens.tasks.task import Task

_TRIES = 40  # of rows to stand against one

Size = tuple[int, int] | None


def task_pairs(
    vlm: HookedModel,
    task: Task | str,
    n: int = 20,
    *,
    modality: Modality = "image",
    examples: int = 0,
    instruction: bool = False,
    same_length: bool = True,
    size: Size = None,
    split: Split = "test",
    seed: int = 0,
) -> Pairs:
    """Draws pairs of rows of a task: the same prompt about two entities.

    With words this is symmetric replacement (Golovanevsky et al. 2024, NOTICE, arXiv 2406.16320):
    nothing is off the data, and with `same_length` both words have equally many tokens.

    Args:
        vlm: The model.
        task: A task, or its name.
        n: How many pairs; no row is the clean one twice.
        modality: Whether entities are given by name, picture or description.
        examples: How many examples stand before the query, the same ones in both prompts.
        instruction: Whether the task's instruction stands in front.
        same_length: Whether only rows are paired whose prompts have equally many positions.
        size: Width and height that every picture is brought to; needed where a model gives
            pictures of different proportions different numbers of patches.
        split: Whose rows.
        seed: The seed of the draw.

    Raises:
        PairError: There are not so many pairs whose answers differ in their first token.
        TaskError: A row lacks what is to be given.
    """
    task = Task.load(task) if isinstance(task, str) else task
    rows = task.rows(split)
    generator = np.random.default_rng(seed)

    def made(clean: Row, corrupt: Row) -> Pair:
        shown = _examples(rows, examples, generator, (clean, corrupt))
        before = task.instruction if instruction else ""
        prompts = (_prompt(vlm, task, shown, q, modality, before, size) for q in (clean, corrupt))
        differs = f"{clean.input} -> {corrupt.input}"
        return Pair(*prompts, clean.output, corrupt.output, differs=differs)

    candidates = (
        [(rows[i], rows[j]) for j in generator.permutation(len(rows)) if j != i]
        for i in generator.permutation(len(rows))
    )
    found = _drawn(vlm, candidates, made, n, same_length)
    return Pairs(found, f"{task.name}, by {modality}", seed)


def constraint_pairs(
    vlm: HookedModel,
    task: Task | str,
    other: Task | str,
    n: int = 20,
    *,
    modality: Modality = "image",
    examples: int = 0,
    same_length: bool = False,
    size: Size = None,
    split: Split = "test",
    seed: int = 0,
) -> Pairs:
    """Draws pairs that ask two things of the same entity: the question's constraint is swapped.

    Basu et al. 2024 (MultimodalCausalTrace, arXiv 2406.04236). Each prompt has its own task's
    instruction in front, and examples of the same entities. `pair.changed` are the tokens of the
    constraint; they restore it with `points="blocks.*.hook_mlp_out"` and `window=`.

    Args:
        vlm: The model.
        task: A task, or its name, whose question the clean prompts ask.
        other: Another one about the same entities.
        n: How many pairs.
        modality: Whether entities are given by name, picture or description.
        examples: How many examples stand before the query, of the same entities in both prompts.
        same_length: Whether only prompts of equally many positions are paired.
        size: Width and height that every picture is brought to.
        split: Whose rows.
        seed: The seed of the draw.

    Raises:
        PairError: The tasks share too few entities whose answers differ in their first token.
        TaskError: A row lacks what is to be given.
    """
    task, other = (Task.load(t) if isinstance(t, str) else t for t in (task, other))
    theirs = {row.input: row for row in other.rows(split)}
    rows = [row for row in task.rows(split) if row.input in theirs]
    generator = np.random.default_rng(seed)

    def made(clean: Row, corrupt: Row) -> Pair:
        shown = _examples(rows, examples, generator, (clean,))
        both = ((task, shown, clean), (other, [theirs[row.input] for row in shown], corrupt))
        prompts = (_prompt(vlm, t, e, q, modality, t.instruction, size) for t, e, q in both)
        differs = f"{clean.input}: {task.name} -> {other.name}"
        return Pair(*prompts, clean.output, corrupt.output, differs=differs)

    candidates = ([(rows[i], theirs[rows[i].input])] for i in generator.permutation(len(rows)))
    found = _drawn(vlm, candidates, made, n, same_length)
    return Pairs(found, f"{task.name} against {other.name}, by {modality}", seed)


def _drawn(
    vlm: HookedModel,
    candidates: Iterable[list[tuple[Row, Row]]],
    made: Callable[[Row, Row], Pair],
    n: int,
    same_length: bool,
) -> tuple[Pair, ...]:
    """One pair from each list of candidates that has a fitting one, until there are enough.

    Raises:
        PairError: There are not.
    """
    found: list[Pair] = []
    for several in candidates:
        if len(found) == n:
            break
        for clean, corrupt in several[:_TRIES]:
            if not _told_apart(vlm, clean.output, corrupt.output):
                continue
            try:
                pair = made(clean, corrupt)
            except PositionError as error:
                raise PairError(f"{error} Here: size=(224, 224).") from None
            if pair.positions.is_whole or not same_length:
                found.append(pair)
                break
    if len(found) < n or not n:
        wanted = ", and prompts of equal length (same_length=False takes others)" * same_length
        raise PairError(
            f"{n} pairs were asked, and {len(found)} can be made: they need answers that differ in "
            f"their first token{wanted}."
        )
    return tuple(found)


def _told_apart(vlm: HookedModel, answer: str, other: str) -> bool:
    try:
        check_apart(vlm, answer, other, 1)
    except MeasureError:
        return False
    return True


def _examples(
    rows: Iterable[Row], n: int, generator: np.random.Generator, but: tuple[Row, ...]
) -> list[Row]:
    others = [row for row in rows if row not in but]
    if n > len(others):
        raise PairError(f"{n} examples were asked, and there are {len(others)} other rows.")
    return [others[i] for i in generator.permutation(len(others))[:n]]


def _prompt(
    vlm: HookedModel,
    task: Task,
    examples: Iterable[Row],
    query: Row,
    modality: Modality,
    instruction: str,
    size: Size,
) -> Prompt:
    shown = [(row.given(modality), row.output) for row in examples]
    raw = task.template.build(shown, query.given(modality))
    text = f"{instruction}\n\n{raw.text}" if instruction else raw.text
    images = raw.images if size is None else tuple(image.resize(size) for image in raw.images)
    return vlm.as_prompt(RawPrompt(text, images))
