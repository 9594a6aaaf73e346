"""Activations of one run, to be put into another run where positions correspond."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from vlm_lens.errors import PointError, VLMLensError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.interventions.base import Intervention, Target
from vlm_lens.layout.cells import Cell, Cells
from vlm_lens.ops import SET, Op
from vlm_lens.points.point import Point
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.storage.fingerprint import fingerprint


class PatchingError(VLMLensError):
    """Two runs between which nothing can be patched as asked."""


@dataclass(frozen=True, eq=False)
class Donor:
    """What one run computed at some cells of some points.

    Attributes:
        values: Point name -> `[cells, (heads,) features]`; of patterns `[cells, heads, keys]`.
        cells: `"text"`, `"vision"` or `"projector"` -> cell -> its place in `values`.
        logits: `[rows, positions, d_vocab]` at the last positions of the prompt.
    """

    values: Mapping[str, Tensor] = field(repr=False)
    cells: Mapping[str, Mapping[Cell, int]] = field(repr=False)
    logits: Tensor = field(repr=False)

    def value(self, point: Point, cells: Sequence[Cell], heads: Sequence[int] | None) -> Tensor:
        """The values at cells, `[cells, (heads,) features]`, of all heads or of some."""
        index = self.cells[point.space]
        places = [index[cell] for cell in cells]
        found = self.values[point.name]
        if places != list(range(len(found))):
            found = found[torch.tensor(places, device=found.device)]
        return found if heads is None else found[:, list(heads)]

    @cached_property
    def digest(self) -> str:
        """A hash of everything that it holds."""
        cells = {space: tuple(index) for space, index in self.cells.items()}
        return fingerprint(dict(self.values), cells)

    def identity(self) -> str:
        """What tells it from others; see `fingerprint`."""
        return self.digest


def read_donor(
    vlm: HookedModel,
    prompt: Prompt,
    names: Sequence[str],
    cells: Mapping[str, Sequence[Cell]],
    *,
    n_last: int = 1,
) -> Donor:
    """Runs a prompt once and keeps some points at some cells, where they are computed.

    Args:
        vlm: The model.
        prompt: The prompt.
        names: The points; none runs the prompt for its logits alone.
        cells: For each space, the cells; a batch keeps whole activations until they are picked.
        n_last: At how many of the last positions logits are kept.

    Raises:
        VLMLensError: A point does not fire on this prompt.
    """
    if not names:
        return Donor({}, {}, vlm.run(prompt)[:, -n_last:])
    at = Cells.of(cells) if len(prompt) == 1 else None
    logits, cache = vlm.run_with_cache(
        prompt, names_filter=list(names), positions=at, last_logits=n_last
    )
    points = vlm.architecture.points
    values = {}
    for name, value in cache.items():
        value = value.transpose(1, 2) if "query" in points[name].axes else value
        if at is None:
            rows, places = torch.tensor(cells[points[name].space], device=value.device).T
            values[name] = value[rows, places]
        else:
            values[name] = value[0]
    index = {space: {cell: i for i, cell in enumerate(mine)} for space, mine in cells.items()}
    return Donor(values, index, logits[:, -n_last:])


@dataclass(frozen=True, eq=False)
class Transplant(Intervention):
    """Puts what a donor run computed into a run, cell for cell.

    Attributes:
        points: The points, all of one space.
        cells: Pairs (cell of this run, cell of the donor's).
        donor: The donor.
        heads: Which heads, at points that have them; all by default.
    """

    points: tuple[str, ...]
    cells: tuple[tuple[Cell, Cell], ...] = field(repr=False)
    donor: Donor = field(repr=False)
    heads: tuple[int, ...] | None = None

    def lower(self, target: Target) -> list[Op]:
        """One `set` op a point."""
        here, there = zip(*self.cells, strict=True)
        rows, positions = zip(*here, strict=True)
        return [
            Op(name, SET, rows, positions, self.heads, {"value": self.donor.value(
                target.points[name], there, self.heads)})
            for name in self.points
        ]  # fmt: skip


def check_points(
    vlm: HookedModel, names: Sequence[str], heads: Sequence[int] | None
) -> list[Point]:
    """The points, which can be written and have these heads.

    Raises:
        PointError: They cannot, or have not.
    """
    points = [vlm.architecture.points[name] for name in names]
    for point in points:
        if not point.writable:
            raise PointError(f"{point.name} cannot be patched: {point.read_only}.")
        if heads is None:
            continue
        if not point.has_heads:
            raise PointError(
                f"{point.name} has no axis of heads ({point.shape}): leave heads= out, or patch "
                "attn.hook_z, hook_q, hook_k, hook_v or hook_pattern."
            )
        n_heads = n_heads_of(point)
        if wrong := [h for h in heads if not 0 <= h < n_heads]:
            raise PointError(f"{point.name} has heads 0..{n_heads - 1}; {wrong[0]} was asked.")
    return points


def n_heads_of(point: Point) -> int:
    """How many heads a point has."""
    return int(point.sizes[point.axes.index("head")])
