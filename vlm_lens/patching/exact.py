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
from typing import Literal, get_args

import numpy as np

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.layout.cells import Cell
from vlm_lens.layout.position_map import PositionMap, position_map
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.measures.base import Measure
from vlm_lens.patching.donor import PatchingError, check_points
from vlm_lens.patching.parts import Part, patch_parts
from vlm_lens.prompts.prompt import Prompt

Direction = Literal["denoise", "noise"]
SHARES = {"denoise": "recovered share", "noise": "lost share"}


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
    resolver = Resolver(vlm, positions, swap=direction == "denoise")
    groups = [(one,) if isinstance(one, Spot) else tuple(one) for one in spots]
    parts = [[resolver.part(spot) for spot in group] for group in groups]
    base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    found = patch_parts(
        vlm, base, source, parts, measure=measure, engine=engine, memory=memory, save=save,
        progress=progress,
    )  # fmt: skip
    here, there = float(found.here[0]), float(found.there[0])
    ends = (there, here) if direction == "denoise" else (here, there)
    lost = tuple(sum(resolver.lost(spot) for spot in group) for group in groups)
    return Patched(found.values[0], *ends, direction, lost, found.engines)


def check_direction(direction: str) -> None:
    """Refuses what is no direction.

    Raises:
        PatchingError: It is none.
    """
    if direction not in get_args(Direction):
        raise PatchingError(f"direction is 'denoise' or 'noise', not {direction!r}.")


class Resolver:
    """Spots as cells of the run that is changed and of the run that gives."""

    def __init__(self, vlm: HookedModel, positions: PositionMap, *, swap: bool):
        self._vlm, self._map, self._swap = vlm, positions, swap
        self._cells: dict[tuple[Position, str], tuple[tuple[Cell, Cell], ...]] = {}

    def part(self, spot: Spot) -> Part:
        """A spot as cells of both runs."""
        return Part(spot.points, spot.heads, self.cells(spot))

    def cells(self, spot: Spot) -> tuple[tuple[Cell, Cell], ...]:
        """Pairs (cell here, cell of the donor), the same object for the same place."""
        points = check_points(self._vlm, spot.points, spot.heads)
        spaces = {point.space for point in points}
        if len(spaces) > 1:
            raise PatchingError(f"The points of a spot are of one space, not of {sorted(spaces)}.")
        for point in points:
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

    def _same_keys(self, space: str) -> bool:
        return all(a == b for a, b in self._map.cells(space).items()) and self._map.is_whole
