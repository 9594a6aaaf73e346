"""Exact patching of every block, head and place that is named, as Scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.integers import as_integer, as_integers, is_integer
from vlm_lens.keywords import Answering
from vlm_lens.layout.cells import Cells
from vlm_lens.layout.position_map import PositionMap, position_map
from vlm_lens.layout.positions import All, Position, as_position
from vlm_lens.measures.base import Measure
from vlm_lens.patching.donor import PatchingError, check_points, n_heads_of
from vlm_lens.patching.exact import SHARES, Direction, Patched, Spot, patch_spots
from vlm_lens.points.point import Point
from vlm_lens.points.table import NamesFilter
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.scores import Scores
from vlm_lens.scores.scores import scores

EACH = "each"
At = Any  # a Position, "each", Each(...), a list of positions, or label -> position
Heads = str | int | Sequence[int] | None


@dataclass(frozen=True)
class Each(Answering):
    """Every position of a place by itself: `at=Each(Images())`.

    Attributes:
        at: The place.
    """

    at: Position

    def __post_init__(self):
        object.__setattr__(self, "at", as_position(self.at))


@dataclass(frozen=True)
class Plan:
    """What is patched, laid out on axes.

    Attributes:
        points: The names of each window of blocks.
        heads: Which heads of each entry; `None` for all together.
        places: The positions of each entry.
        axes: Axis -> its coordinates; none for a single number.
        rows: The activation's row of each position, where there is that axis.
        space: Whose positions they are.
        about: What is said of it.
    """

    points: tuple[tuple[str, ...], ...]
    heads: tuple[tuple[int, ...] | None, ...]
    places: tuple[Position, ...]
    axes: Mapping[str, tuple]
    rows: tuple[int, ...] | None
    space: str
    about: Mapping[str, Any]

    @cached_property
    def spots(self) -> tuple[Spot, ...]:
        """Every window, head and place together, in the order of the axes: the last one fastest."""
        every = product(self.points, self.heads, self.places)
        return tuple(Spot(names, place, chosen) for names, chosen, place in every)

    def __len__(self) -> int:
        return len(self.points) * len(self.heads) * len(self.places)

    def as_array(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers of the spots, by axis."""
        return numbers.reshape([len(c) for c in self.axes.values()])


def patch(
    vlm: HookedModel,
    clean: Prompt,
    corrupt: Prompt,
    points: NamesFilter,
    *,
    measure: Measure,
    at: At = None,
    heads: Heads = None,
    window: int = 1,
    direction: Direction = "denoise",
    positions: PositionMap | None = None,
    engine: str = "auto",
    memory: int | None = None,
    save: str | Path | None = None,
    progress: bool = False,
) -> Scores:
    """The share of a difference that each block, head and place carries; see `patching.exact`.

    Args:
        vlm: The model.
        clean: The clean prompt, of one row.
        corrupt: The corrupt one.
        points: A point, a glob or a list, of one kind: `"blocks.*.attn.hook_z"`.
        measure: What the difference is of.
        at: A position (all by default); a list of them, or a mapping from labels, one score each;
            `"each"` or `Each(position)` for every position by itself. Named on the clean prompt.
        heads: `"each"`, or the numbers of those that are patched, each by itself; `None` patches
            all heads together.
        window: How many neighbouring blocks are patched together.
        direction: `"denoise"`: clean activations into the corrupt run; `"noise"`: the reverse.
        positions: Which position stands for which; found by default.
        engine: As for `vlm.sweep`.
        memory: As for `vlm.sweep`.
        save: As for `vlm.sweep`.
        progress: As for `vlm.sweep`.

    Returns:
        Scores by `layer` (of a window its first block), `head`, and `kind` (of several places) or
        `position`; an axis is left out where there is one of it.

    Raises:
        VLMLensError: Something does not fit the model or the prompts (before any run).
    """
    positions = positions or position_map(clean.layout, corrupt.layout)
    plan = plan_patches(vlm, positions, points, at=at, heads=heads, window=window)
    patched = patch_spots(
        vlm, clean, corrupt, plan.spots, measure=measure, positions=positions,
        direction=direction, engine=engine, memory=memory, save=save, progress=progress,
    )  # fmt: skip
    return as_scores(vlm, plan, patched, clean, measure)


def as_scores(
    vlm: HookedModel, plan: Plan, patched: Patched, clean: Prompt, measure: Measure
) -> Scores:
    """Shares of the spots of a plan as Scores on the clean prompt."""
    lost = sum(patched.lost[: len(plan.places)])  # the same in every block and head
    return scores(
        plan.as_array(patched.share),
        plan.axes,
        plan.rows if plan.space != "text" else None,
        name=SHARES[patched.direction],
        layout=clean.layout,
        pictures=clean.images[0] if clean.images else (),
        space=plan.space,
        about={
            "method": f"activation patching ({patched.direction})",
            "model": vlm.name,
            **plan.about,
            "measure": repr(measure),
            "clean": patched.clean,
            "corrupt": patched.corrupt,
            **({"positions without counterpart, left out": lost} if lost else {}),
        },
    )


def plan_patches(
    vlm: HookedModel,
    positions: PositionMap,
    points: NamesFilter,
    *,
    at: At = None,
    heads: Heads = None,
    window: int = 1,
) -> Plan:
    """The spots that `patch` is asked for, on their axes.

    Raises:
        VLMLensError: They do not fit the model or the prompts.
    """
    found, barred = _one_kind(vlm, points)
    space = found[0].space
    windows = _windows(found, window)
    by_head = _heads(vlm, found, heads)
    places, by_place, rows = _places(at, positions, space)
    axes: dict[str, tuple] = {}
    if len(windows) > 1:
        axes["layer"] = tuple(layer for layer, _ in windows)
    if heads is not None:
        axes["head"] = tuple(head for head, _ in by_head)
    about: dict[str, Any] = {"points": points if isinstance(points, str) else repr(points)}
    if barred:
        about["left out"] = f"{barred[0].name} ({barred[0].read_only})"
    if window > 1:
        about["window"] = f"{window} blocks from each"
    if by_place is None:
        about["at"] = name_of(places[0])
    return Plan(
        tuple(names for _, names in windows),
        tuple(chosen for _, chosen in by_head),
        tuple(places),
        {**axes, **(by_place or {})},
        rows,
        space,
        about,
    )


def _one_kind(vlm: HookedModel, points: NamesFilter) -> tuple[list[Point], list[Point]]:
    """Points that differ by block alone, and those of a glob that cannot be written."""
    found = [vlm.architecture.points[name] for name in vlm.architecture.points.match(points)]
    kinds = list(dict.fromkeys(point.kind for point in found))
    if len(kinds) > 1 or (len(found) > 1 and found[0].layer is None):
        raise PatchingError(
            f"These are points of {len(kinds)} kinds, {', '.join(kinds[:4])}: patch one kind at a "
            "time, 'blocks.*.attn.hook_z' for example, so that scores have one axis of layers."
        )
    writable = [point for point in found if point.writable]
    return (writable, [p for p in found if not p.writable]) if writable else (found, [])


def _windows(points: Sequence[Point], size: int) -> list[tuple[int | None, tuple[str, ...]]]:
    """First block and names of each window of neighbouring points."""
    size = as_integer(size, "window", PatchingError)
    if not 1 <= size <= len(points):
        raise PatchingError(f"A window has 1 to {len(points)} blocks, not {size}.")
    starts = range(len(points) - size + 1)
    return [(points[s].layer, tuple(p.name for p in points[s : s + size])) for s in starts]


def _heads(
    vlm: HookedModel, points: Sequence[Point], heads: Heads
) -> list[tuple[int | None, tuple[int, ...] | None]]:
    """Label and heads of each entry of the axis of heads."""
    if heads is None:
        return [(None, None)]
    if heads == EACH:
        check_points(vlm, [p.name for p in points], (0,))
        counts = sorted({n_heads_of(p) for p in points})
        if len(counts) > 1:
            raise PatchingError(
                f"These blocks have {' or '.join(map(str, counts))} heads: ask for those of one "
                "number at a time."
            )
        return [(h, (h,)) for h in range(counts[0])]
    if isinstance(heads, str):
        raise PatchingError(f"heads is 'each', numbers, or None for all together, not {heads!r}.")
    numbers = as_integers(heads, "A head", PatchingError)
    if not numbers or len(set(numbers)) < len(numbers):
        raise PatchingError(f"heads={heads!r} must name at least one head, each once.")
    check_points(vlm, [p.name for p in points], numbers)
    return [(h, (h,)) for h in numbers]


def _places(
    at: At, positions: PositionMap, space: str
) -> tuple[list[Position], dict[str, tuple] | None, tuple[int, ...] | None]:
    """The positions of each entry, the axis that they are, and the rows of single positions."""
    if isinstance(at, str):
        if at != EACH:
            raise PatchingError(
                f"at is a position, a list of them, Each(...) or 'each', not {at!r}."
            )
        at = Each(All())
    if isinstance(at, Each):
        cells = list(positions.resolve(at.at, space))
        places: list[Position] = [Cells.of({space: [cell]}) for cell in cells]
        return places, {"position": tuple(p for _, p in cells)}, tuple(r for r, _ in cells)
    if isinstance(at, Mapping):
        labels = {str(k): as_position(v) for k, v in at.items()}
    elif isinstance(at, list | tuple) and at and not all(is_integer(p) for p in at):
        labels = {name_of(place): place for place in map(as_position, at)}
        if len(labels) < len(at):
            raise PatchingError(f"at={at!r} names a place twice.")
    else:
        return [All() if at is None else as_position(at)], None, None
    if not labels:
        raise PatchingError("at= names no place: leave it out for all positions.")
    return list(labels.values()), {"kind": tuple(labels)}, None


def name_of(at: Position) -> str:
    """A position as it is typed, without what it has by default."""
    plain = not fields(at) or all(getattr(at, f.name) == f.default for f in fields(at))
    return f"{type(at).__name__}()" if plain else repr(at)
