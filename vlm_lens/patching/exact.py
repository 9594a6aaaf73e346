"""Exact patching: single places of one run put into another, each in a run of its own.

    denoise   the corrupt prompt runs, with the clean run's activations at the place
              recovered share = (patched - corrupt) / (clean - corrupt)
    noise     the clean prompt runs, with the corrupt run's activations at the place
              lost share      = (clean - patched) / (clean - corrupt)

Both are 0 where the place does nothing and 1 where it decides alone. The runs are variants of one
recorded run, of which each computes only what it can change (`vlm_lens.sweep`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from vlm_lens.engine.baseline import Baseline
from vlm_lens.engine.replay import Replayed
from vlm_lens.engine.start import Start
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.interventions.base import Intervention, compose
from vlm_lens.layout.cells import Cell
from vlm_lens.layout.position_map import PositionMap, position_map
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.measures.base import BoundLogits, BoundMeasure, Measure, Record, at_last
from vlm_lens.patching.donor import (
    Donor,
    PatchingError,
    Transplant,
    check_points,
    read_donor,
)
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.sweep.run import sweep
from vlm_lens.sweep.variants import Variant

Direction = Literal["denoise", "noise"]
SHARES = {"denoise": "recovered share", "noise": "lost share"}
_LEAST = 1e-5  # of the larger of both measurements: below it their difference is rounding


class NoDifference(PatchingError):
    """Two runs for which a measure gives the same."""


@dataclass(frozen=True)
class Spot:
    """A place whose activations are patched together.

    Attributes:
        points: Names of points, all of one space.
        at: Where, named on the clean prompt.
        heads: Which heads; all by default.
    """

    points: tuple[str, ...]
    at: Position
    heads: tuple[int, ...] | None = None

    def __post_init__(self):
        if isinstance(self.points, str):
            object.__setattr__(self, "points", (self.points,))
        object.__setattr__(self, "at", as_position(self.at))


@dataclass(frozen=True, eq=False)
class Patched:
    """What a measure gave when each spot was patched by itself.

    Attributes:
        values: The measurements, one a spot.
        clean: That of the clean run.
        corrupt: That of the corrupt run.
        direction: `"denoise"` or `"noise"`.
        lost: For each spot, how many positions were left out for want of a counterpart.
        engines: How many variants each engine computed.
    """

    values: np.ndarray
    clean: float
    corrupt: float
    direction: str
    lost: tuple[int, ...] = ()
    engines: dict[str, int] | None = None

    @property
    def share(self) -> np.ndarray:
        """The recovered share (denoise) or the lost share (noise) of each spot."""
        return as_share(self.values, self.clean, self.corrupt, self.direction)


def as_share(values: np.ndarray, clean: float, corrupt: float, direction: str) -> np.ndarray:
    """Measurements as recovered shares (denoise) or lost shares (noise)."""
    moved = values - corrupt if direction == "denoise" else clean - values
    return moved / (clean - corrupt)


def patch_spots(
    vlm: HookedModel,
    clean: Prompt,
    corrupt: Prompt,
    spots: Sequence[Spot | Sequence[Spot]],
    *,
    measure: Measure,
    positions: PositionMap | None = None,
    direction: Direction = "denoise",
    engine: str = "auto",
    memory: int | None = None,
    save: str | Path | None = None,
    progress: bool = False,
) -> Patched:
    """Patches each spot by itself, exactly: one forward for each, replayed.

    Args:
        vlm: The model.
        clean: The clean prompt, of one row.
        corrupt: The corrupt one.
        spots: What is patched; an entry that is a list of spots is patched together.
        measure: A measure whose first column is a number.
        positions: Which position stands for which; found by default.
        direction: `"denoise"`: clean activations into the corrupt run; `"noise"`: the reverse.
        engine: As for `vlm.sweep`.
        memory: As for `vlm.sweep`.
        save: As for `vlm.sweep`.
        progress: As for `vlm.sweep`.

    Raises:
        NoDifference: The measure gives the same for both prompts.
        PatchingError: It gives no number.
        VLMLensError: A spot does not fit the model or the prompts (before any run).
    """
    check_direction(direction)
    if not spots:
        raise PatchingError("There is nothing to patch: no spot was given.")
    positions = positions or position_map(clean.layout, corrupt.layout)
    groups = [(one,) if isinstance(one, Spot) else tuple(one) for one in spots]
    resolver = Resolver(vlm, positions, swap=direction == "denoise")
    placed = [[(spot, resolver.cells(spot)) for spot in group] for group in groups]
    base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    bound, of_base = measure.bind(vlm, source), measure.bind(vlm, base)
    donor = read_donor(vlm, source, resolver.names, resolver.donor_cells(), n_last=bound.n_last)
    there = number(measured(bound, donor, source))
    variants = [Variant(_transplants(group, donor), {"spot": i}) for i, group in enumerate(placed)]
    result = sweep(
        vlm, base, variants, measure=_Against(measure, of_base, there), engine=engine,
        memory=memory, save=save, progress=progress,
    )  # fmt: skip
    if not result.complete:
        raise KeyboardInterrupt
    here = number(result.baseline)
    ends = (there, here) if direction == "denoise" else (here, there)
    values = np.array([number([record], skip=1) for record in result.records])
    lost = tuple(sum(resolver.lost(spot) for spot in group) for group in groups)
    return Patched(values, *ends, direction, lost, dict(result.engines))


def number(records: Sequence[Record], skip: int = 0) -> float:
    """The first column of the only record, after so many labels.

    Raises:
        PatchingError: It is no number.
    """
    name, value = list(records[0].items())[skip]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PatchingError(
            f"What is measured must be a number, and column {name!r} of this measure is "
            f"{type(value).__name__}: use LogitDiff, Prob, LogProb, KL(to=logits), or a function."
        )
    return float(value)


def check_direction(direction: str) -> None:
    """Refuses what is no direction.

    Raises:
        PatchingError: It is none.
    """
    if direction not in get_args(Direction):
        raise PatchingError(f"direction is 'denoise' or 'noise', not {direction!r}.")


def check_apart(clean: float, corrupt: float) -> None:
    """Refuses two measurements whose difference is nothing but rounding.

    Raises:
        NoDifference: They are equal.
    """
    if not abs(clean - corrupt) > _LEAST * max(1.0, abs(clean), abs(corrupt)):
        raise NoDifference(
            f"The measure gives {clean:.6g} for the clean prompt and {corrupt:.6g} for the corrupt "
            "one, so there is no difference to share out: take prompts that the model answers "
            "differently (Pairs.solved(vlm) keeps those), or another measure."
        )


def measured(bound: BoundMeasure, donor: Donor, prompt: Prompt) -> list[Record]:
    """The measure of a donor's own run."""
    if isinstance(bound, BoundLogits):
        return bound.records(at_last(donor.logits, prompt.layouts, bound.n_last))
    return bound.of_run(())


def _transplants(
    group: Sequence[tuple[Spot, tuple[tuple[Cell, Cell], ...]]], donor: Donor
) -> Intervention:
    parts = [Transplant(spot.points, cells, donor, spot.heads) for spot, cells in group]
    return parts[0] if len(parts) == 1 else compose(parts)


class Resolver:
    """Spots as cells of the run that is changed and of the run that gives."""

    def __init__(self, vlm: HookedModel, positions: PositionMap, *, swap: bool):
        self._vlm, self._map, self._swap = vlm, positions, swap
        self.names: list[str] = []
        self._cells: dict[tuple[Position, str], tuple[tuple[Cell, Cell], ...]] = {}

    def cells(self, spot: Spot) -> tuple[tuple[Cell, Cell], ...]:
        """Pairs (cell here, cell of the donor), the same object for the same place."""
        points = check_points(self._vlm, spot.points, spot.heads)
        spaces = {point.space for point in points}
        if len(spaces) > 1:
            raise PatchingError(f"The points of a spot are of one space, not of {sorted(spaces)}.")
        for point in points:
            if point.name not in self.names:
                self.names.append(point.name)
            if "query" in point.axes and not self._same_keys(point.space):
                raise PatchingError(
                    f"{point.name} has an axis of keys, so it can be patched between prompts of "
                    "the same length only: patch attn.hook_z, or make the prompts equally long."
                )
        key = spot.at, spaces.pop()
        if key not in self._cells:
            found = self._map.resolve(*key)
            if not found:
                raise PatchingError(f"{spot.at!r} holds no position of the clean prompt.")
            both = [(b, a) if self._swap else (a, b) for a, b in found.items()]
            self._cells[key] = tuple(both)
        return self._cells[key]

    def lost(self, spot: Spot) -> int:
        """How many positions of a spot have no counterpart."""
        space = self._vlm.architecture.points[spot.points[0]].space
        return len(self._map.lost(spot.at, space))

    def donor_cells(self) -> dict[str, list[Cell]]:
        """For each space, every cell that is asked of the donor, each once."""
        found: dict[str, dict[Cell, None]] = {}
        for (_, space), cells in self._cells.items():
            found.setdefault(space, {}).update((there, None) for _, there in cells)
        return {space: list(cells) for space, cells in found.items()}

    def _same_keys(self, space: str) -> bool:
        return all(a == b for a, b in self._map.cells(space).items()) and self._map.is_whole


@dataclass(frozen=True, eq=False)
class _Against(Measure):
    """A measure that refuses a plain run in which it gives what another run gave."""

    measure: Measure
    bound: BoundMeasure
    other: float

    def bind(self, vlm: HookedModel, prompt: Prompt) -> BoundMeasure:
        return _BoundAgainst(self.bound, self.other)

    def identity(self) -> str:
        return self.measure.identity()


class _BoundAgainst(BoundMeasure):
    def __init__(self, bound: BoundMeasure, other: float):
        self._bound, self._other = bound, other
        self.columns, self.n_last = bound.columns, bound.n_last
        self.goes_on, self.cells = bound.goes_on, bound.cells

    def refuses(self, start: Start) -> str:
        return self._bound.refuses(start)

    def of_plain(self, baseline: Baseline | None) -> list[Record]:
        found = self._bound.of_plain(baseline) or self._bound.of_run(())
        check_apart(self._other, number(found))
        return found

    def of_replay(self, baseline: Baseline, replayed: Replayed) -> list[list[Record]]:
        return self._bound.of_replay(baseline, replayed)

    def of_run(self, interventions: Any) -> list[Record]:
        return self._bound.of_run(interventions)
