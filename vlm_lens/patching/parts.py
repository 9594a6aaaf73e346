"""The runs of patching: parts of a source run put into a base run, many as one sweep.

Base and source may be batches of prompts of one shape, row beside row: then a part holds the cells
of every row, and each row is measured on its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm_lens.engine.baseline import Baseline
from vlm_lens.engine.replay import Replayed
from vlm_lens.engine.start import Start
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.interventions.base import Intervention, compose
from vlm_lens.layout.cells import Cell
from vlm_lens.measures.base import BoundLogits, BoundMeasure, Measure, Record, at_last
from vlm_lens.patching.donor import Donor, PatchingError, Transplant, read_donor
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.sweep.run import sweep
from vlm_lens.sweep.variants import Variant

_SMALL = 0.02  # likewise: shares of a smaller difference are said to be of one
_LEAST = 1e-5  # of the larger of two measurements: below it their difference is rounding


class NoDifference(PatchingError):
    """Two runs for which a measure gives the same."""


@dataclass(frozen=True)
class Part:
    """Activations that are put in together.

    Attributes:
        points: Names of points, all of one space.
        heads: Which heads; all if `None`.
        cells: Pairs (cell of the base run, cell of the source run).
    """

    points: tuple[str, ...]
    heads: tuple[int, ...] | None
    cells: tuple[tuple[Cell, Cell], ...]


@dataclass(frozen=True, eq=False)
class Measured:
    """What a measure gave.

    Attributes:
        values: Under each variant, `[rows, variants]`.
        here: In the plain base run, `[rows]`.
        there: In the source run, `[rows]`.
        engines: How many variants each engine computed.
    """

    values: np.ndarray
    here: np.ndarray
    there: np.ndarray
    engines: dict[str, int]


def patch_parts(
    vlm: HookedModel,
    base: Prompt,
    source: Prompt,
    variants: Sequence[Sequence[Part]],
    *,
    measure: Measure,
    engine: str = "auto",
    memory: int | None = None,
    save: str | Path | None = None,
    progress: bool = False,
) -> Measured:
    """Runs the source once, and the base once for each variant, with the source's parts put in.

    Args:
        vlm: The model.
        base: The prompt that is changed.
        source: The prompt that gives, of as many rows.
        variants: What is put in together.
        measure: A measure whose first column is a number.
        engine: As for `vlm.sweep`.
        memory: As for `vlm.sweep`.
        save: As for `vlm.sweep`.
        progress: As for `vlm.sweep`.

    Raises:
        NoDifference: The measure gives the same for both prompts, which have one row (before any
            variant is run).
        PatchingError: It gives no number.
    """
    bound, of_base = measure.bind(vlm, source), measure.bind(vlm, base)
    names, here, there_cells = _asked(vlm, variants)
    donor = read_donor(vlm, source, names, there_cells, n_last=bound.n_last)
    there = numbers(measured(bound, donor, source))
    same = _Same(vlm, donor, read_donor(vlm, base, names, here))
    result = sweep(
        vlm,
        base,
        [
            Variant(_put_in([same.left_out(part) for part in parts], donor), {"variant": i})
            for i, parts in enumerate(variants)
        ],
        measure=_Against(measure, of_base, there),
        engine=engine,
        memory=memory,
        save=save,
        progress=progress,
    )
    if not result.complete:
        raise KeyboardInterrupt
    labels = 1 + (len(base) > 1)  # the variant, and the row
    values = numbers(result.records, labels).reshape(len(variants), len(base)).T
    return Measured(values, numbers(result.baseline), there, dict(result.engines))


def numbers(records: Sequence[Record], labels: int = 0) -> np.ndarray:
    """The first column of each record, after so many labels.

    Raises:
        PatchingError: It is no number.
    """
    found = []
    for record in records:
        name, value = list(record.items())[labels]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise PatchingError(
                f"What is measured must be a number, and column {name!r} of this measure is "
                f"{type(value).__name__}: use LogitDiff, Prob, LogProb, KL(to=logits), or a "
                "function."
            )
        found.append(float(value))
    return np.array(found)


def are_apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether two measurements differ by more than rounding."""
    scale = np.maximum(1.0, np.maximum(np.abs(one), np.abs(other)))
    return np.abs(one - other) > _LEAST * scale


def check_apart(clean: float, corrupt: float) -> None:
    """Refuses two measurements whose difference is nothing but rounding; says if it is small.

    Raises:
        NoDifference: They are equal.
    """
    if not are_apart(np.array(clean), np.array(corrupt)):
        raise NoDifference(
            f"The measure gives {clean:.6g} for the one prompt and {corrupt:.6g} for the other, "
            "so there is no difference to share out: take prompts that the model answers "
            "differently (Pairs.solved(vlm) keeps those), or another measure."
        )
    if abs(clean - corrupt) < _SMALL * max(abs(clean), abs(corrupt)):
        warnings.warn(
            f"The measure gives {clean:.4g} for the one prompt and {corrupt:.4g} for the other: "
            "shares of so small a difference say little. Take prompts that the model answers "
            "differently (Pairs.solved(vlm) keeps those), or another measure.",
            stacklevel=2,
        )


def measured(bound: BoundMeasure, donor: Donor, prompt: Prompt) -> list[Record]:
    """The measure of a donor's own run."""
    if isinstance(bound, BoundLogits):
        return bound.records(at_last(donor.logits, prompt.layouts, bound.n_last))
    return bound.of_run(())


def _put_in(parts: Sequence[Part], donor: Donor) -> Intervention:
    parts = [part for part in parts if part.cells]
    made = [Transplant(part.points, part.cells, donor, part.heads) for part in parts]
    return made[0] if len(made) == 1 else compose(made)


def _asked(
    vlm: HookedModel, variants: Sequence[Sequence[Part]]
) -> tuple[list[str], dict[str, list[Cell]], dict[str, list[Cell]]]:
    """The points that are read, and for each space the cells of both runs, each once."""
    names: dict[str, None] = {}
    both: dict[str, dict[tuple[Cell, Cell], None]] = {}
    seen: set[tuple[str, int]] = set()  # the same cells stand in many parts
    for part in (part for parts in variants for part in parts):
        names.update(dict.fromkeys(part.points))
        space = vlm.architecture.points[part.points[0]].space
        if (space, id(part.cells)) not in seen:
            seen.add((space, id(part.cells)))
            both.setdefault(space, {}).update(dict.fromkeys(part.cells))
    here, there = (
        {space: list(dict.fromkeys(pair[side] for pair in pairs)) for space, pairs in both.items()}
        for side in (0, 1)
    )
    return list(names), here, there


class _Same:
    """Cells at which both runs hold the same numbers, so that putting them in changes nothing.

    What stands before the first difference of two prompts is the same in a causal model, so that a
    variant need not be computed from there on, or not at all.
    """

    def __init__(self, vlm: HookedModel, source: Donor, base: Donor):
        self._points, self._source, self._base = vlm.architecture.points, source, base
        self._known: dict[tuple[tuple[str, ...], int], tuple[tuple[Cell, Cell], ...]] = {}

    def left_out(self, part: Part) -> Part:
        """The part without such cells."""
        key = part.points, id(part.cells)
        if key not in self._known:
            here, there = zip(*part.cells, strict=True)
            differs = torch.zeros(len(part.cells), dtype=torch.bool)
            for name in part.points:
                point = self._points[name]
                new = self._source.value(point, there, None)
                old = self._base.value(point, here, None)
                differs |= (new != old.to(new.device)).flatten(1).any(1).cpu()
            kept = differs.tolist()
            self._known[key] = tuple(c for c, moved in zip(part.cells, kept, strict=True) if moved)
        return replace(part, cells=self._known[key])


@dataclass(frozen=True, eq=False)
class _Against(Measure):
    """A measure that refuses a plain run in which it gives what another run gave."""

    measure: Measure
    bound: BoundMeasure
    other: np.ndarray

    def bind(self, vlm: HookedModel, prompt: Prompt) -> BoundMeasure:
        return _BoundAgainst(self.bound, self.other)

    def identity(self) -> str:
        return self.measure.identity()


class _BoundAgainst(BoundMeasure):
    def __init__(self, bound: BoundMeasure, other: np.ndarray):
        self._bound, self._other = bound, other
        self.columns, self.n_last = bound.columns, bound.n_last
        self.goes_on, self.cells = bound.goes_on, bound.cells

    def refuses(self, start: Start) -> str:
        return self._bound.refuses(start)

    def of_plain(self, baseline: Baseline | None) -> list[Record]:
        found = self._bound.of_plain(baseline) or self._bound.of_run(())
        if len(found) == 1:  # rows of a batch are told apart when they are finished
            check_apart(float(self._other[0]), float(numbers(found)[0]))
        return found

    def of_replay(self, baseline: Baseline, replayed: Replayed) -> list[list[Record]]:
        return self._bound.of_replay(baseline, replayed)

    def of_run(self, interventions: Any) -> list[Record]:
        return self._bound.of_run(interventions)
