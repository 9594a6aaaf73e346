"""Variants that act on tower or projector, computed for the pictures that they touch.

A picture's tower sees all of the picture at every block, so nothing before the first block that a
variant touches has to be computed again, and everything after it has. The model's own code runs on
the pictures touched, one copy a variant, with the results of earlier blocks given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from vlm_lens.engine.baseline import NotReplayable
from vlm_lens.engine.handlers import read_handler
from vlm_lens.engine.hooks import HookedRun
from vlm_lens.engine.joining import Counted, joined_handlers
from vlm_lens.engine.pictures import NotSeparable, Pictures
from vlm_lens.engine.stand_ins import standing_in
from vlm_lens.families import Architecture
from vlm_lens.layout.layout import ImageLayout
from vlm_lens.ops import MEAN, Op
from vlm_lens.points.point import Point
from vlm_lens.points.sites import submodule

_FIRST_BLOCK = "vision.blocks.0.hook_resid_post"


@dataclass(frozen=True)
class PicturePart:
    """What of a variant acts before the language model.

    Attributes:
        pictures: The pictures that it touches, by number.
        layer: The first tower block that must be run again; as many as there are if none must.
        alone: Whether it must run by itself and on all pictures, because it acts on them together.
    """

    pictures: tuple[int, ...]
    layer: int
    alone: bool = False


@dataclass(frozen=True)
class Repictured:
    """What a variant makes of the pictures that it touches.

    Attributes:
        features: Picture -> `[streams, places, d_model]`; see `Pictures.features`.
        read: Point name -> place in the recorded run -> the activation there.
    """

    features: dict[int, Tensor] = field(default_factory=dict)
    read: dict[str, dict[tuple[int, int], Tensor]] = field(default_factory=dict)


class TowerReplay:
    """The recorded tower of one prompt, and variants of it.

    Args:
        model: The Hugging Face model.
        arch: Its parts.
        pictures: The prompt's pictures.
        adds_positions: Whether the language model adds positions to its input.
    """

    def __init__(
        self,
        model: nn.Module,
        arch: Architecture,
        pictures: Pictures,
        *,
        adds_positions: bool = False,
    ):
        self.model, self.arch, self.pictures = model, arch, pictures
        self._adds_positions = adds_positions
        self._added: list[Tensor] = []  # for each picture, what is added to its features
        self.blocks = tower_blocks(model, arch)
        self.outputs: list[Any] = []  # of each block in the recorded run
        self._owners = {
            space: _owners([p.layout for p in pictures.placed], space, packed=pictures.packed)
            for space in ("vision", "projector")
        }

    def check(self, entered: Tensor, added: dict[int, Tensor]) -> None:
        """Compares the first picture, computed alone, with the recorded run.

        Where positions are added to features, they are taken from the difference.

        Args:
            entered: What entered the first block of the language model, `[rows, pos, d_model]`.
            added: Block -> what the model adds to the stream before it.

        Raises:
            NotReplayable: Features do not stand in the text as they are, or depend on more than
                their picture.
        """
        numbers = list(range(len(self.pictures))) if self._adds_positions else [0]
        try:
            found = self.features(numbers, len(self.blocks))
        except NotSeparable as error:
            raise NotReplayable(str(error)) from None
        recorded = [entered, *(added[layer] for layer in sorted(added))]
        if len(recorded) != len(found[0]):
            raise NotReplayable("picture features enter the language model in an unknown way")
        expected = [
            [stream[p.row, list(p.places)] for stream in recorded] for p in self.pictures.placed
        ]
        if self._adds_positions:
            self._added = [whole[0] - mine[0] for whole, mine in zip(expected, found, strict=True)]
            return
        for whole, mine in zip(expected[0], found[0], strict=True):
            scale = whole.abs().max()
            if (whole - mine).abs().max() > torch.finfo(mine.dtype).eps ** 0.5 * scale:
                raise NotReplayable("picture features do not stand in the text as they are")

    def part_of(self, ops: Sequence[Op]) -> PicturePart:
        """What ops at tower and projector touch.

        Raises:
            NotReplayable: A place that belongs to no picture.
        """
        layer, touched, alone = len(self.blocks), set(), False
        for op in ops:
            point = self.arch.points[op.point]
            if point.name == "vision.hook_embed":
                layer = 0
            elif point.layer is not None and point.name.startswith("vision.blocks."):
                layer = min(layer, point.layer)
            touched |= {
                self._owner(point, place) for place in zip(op.rows, op.positions, strict=True)
            }
            alone |= self.pictures.packed and point.on_demand
        numbers = range(len(self.pictures)) if alone else sorted(touched)
        return PicturePart(tuple(numbers), layer, alone)

    def replay(
        self,
        parts: Sequence[PicturePart],
        ops: Sequence[Sequence[Counted]],
        wanted: Mapping[str, Sequence[tuple[int, int]]] = MappingProxyType({}),
    ) -> list[Repictured]:
        """Runs the pictures that some variants touch.

        Args:
            parts: For each variant, what it touches; all of one layer, and one only if `alone`.
            ops: For each variant, its ops at tower and projector with their counters.
            wanted: Point name -> places, counted in the recorded run, where it is read.
        """
        units = [(v, n) for v, part in enumerate(parts) for n in part.pictures]
        numbers = [n for _, n in units]
        unit_of = {unit: i for i, unit in enumerate(units)}
        moved = [
            [
                (self._moved(op, numbers, lambda n, v=v: unit_of[v, n]), counter)
                for op, counter in mine
            ]
            for v, mine in enumerate(ops)
        ]
        store: dict[str, Tensor] = {}
        handlers = joined_handlers(moved)
        for name in wanted:
            handlers.setdefault(name, []).append(read_handler(store, lambda x, firing: x))
        with HookedRun(self.model, self.arch.points, handlers):
            found = self.features(numbers, parts[0].layer)
        result = [Repictured() for _ in parts]
        for i, (v, n) in enumerate(units):
            if self._added:
                found[i] = torch.cat([found[i][:1] + self._added[n], found[i][1:]])
            result[v].features[n] = found[i]
            for name, value in store.items():
                read = self._read(self.arch.points[name], value, wanted[name], n, numbers, i)
                result[v].read.setdefault(name, {}).update(read)
        return result

    def _read(
        self,
        point: Point,
        value: Tensor,
        places: Sequence[tuple[int, int]],
        number: int,
        numbers: Sequence[int],
        unit: int,
    ) -> dict[tuple[int, int], Tensor]:
        """The activation at those places of one picture, as one unit of a run has it."""
        owners = self._owners[point.space]
        start = owners.starts(numbers)[unit]
        value = value.transpose(1, 2) if "query" in point.axes else value
        return {
            place: value[owners.shifted(*place, start)]
            for place in places
            if owners.picture_at(*place) == number
        }

    def features(self, numbers: Sequence[int], layer: int) -> list[Tensor]:
        """Features of some pictures, the results of the tower's blocks before `layer` given."""
        given = {
            block: lambda i=i: _map(self.outputs[i], lambda x: self._rows_of(x, numbers))
            for i, block in enumerate(self.blocks[:layer])
        }
        with standing_in(given):
            return self.pictures.features(numbers)

    def _moved(self, op: Op, numbers: Sequence[int], unit_of: Callable[[int], int]) -> Op:
        """An op with its places counted in a run of some pictures."""
        owners = self._owners[self.arch.points[op.point].space]
        starts = owners.starts(numbers)

        def move(row: int, position: int) -> tuple[int, int]:
            return owners.shifted(row, position, starts[unit_of(owners.picture_at(row, position))])

        rows, positions = zip(
            *(move(*p) for p in zip(op.rows, op.positions, strict=True)), strict=True
        )
        tensors = op.tensors
        if op.kind == MEAN:
            pool = [(*move(r, p), mean) for r, p, mean in tensors["pool"].tolist()]
            tensors = {**tensors, "pool": torch.tensor(pool, dtype=torch.long)}
        return replace(op, rows=rows, positions=positions, tensors=tensors)

    def _owner(self, point: Point, place: tuple[int, int]) -> int:
        number = self._owners[point.space].picture_at(*place)
        if number is None:
            raise NotReplayable(f"it acts at a place of {point.name} that belongs to no picture")
        return number

    def _rows_of(self, x: Tensor, numbers: Sequence[int]) -> Tensor:
        """Of a tensor of the recorded tower, what belongs to some pictures."""
        owners = self._owners["vision"]
        index = torch.tensor([i for n in numbers for i in owners.items[n]], device=x.device)
        axis = x.dim() - 2 if self.pictures.packed else 0
        return x.index_select(axis, index)


@dataclass(frozen=True)
class _Owners:
    """Which picture each row (or, where pictures are packed, each position) belongs to.

    Attributes:
        items: For each picture, its rows or positions, ascending.
        packed: Whether these are positions.
    """

    items: list[list[int]]
    packed: bool

    @cached_property
    def _found(self) -> dict[int, tuple[int, int]]:
        """Row or position -> its picture, and which of that picture's it is."""
        return {item: (n, i) for n, mine in enumerate(self.items) for i, item in enumerate(mine)}

    def picture_at(self, row: int, position: int) -> int | None:
        """The picture that a place belongs to."""
        return self._found.get(position if self.packed else row, (None, 0))[0]

    def starts(self, numbers: Sequence[int]) -> list[int]:
        """Where each of some pictures begins in a run of them alone."""
        return [0, *accumulate(len(self.items[n]) for n in numbers)]

    def shifted(self, row: int, position: int, start: int) -> tuple[int, int]:
        """A place of a picture that begins at `start`."""
        _, rank = self._found[position if self.packed else row]
        return (row, start + rank) if self.packed else (start + rank, position)


def _owners(layouts: Sequence[ImageLayout], space: str, *, packed: bool) -> _Owners:
    items = []
    for layout in layouts:
        sequences = layout.space(space).sequences
        found = {p for _, ps in sequences for p in ps} if packed else {r for r, _ in sequences}
        items.append(sorted(found))
    return _Owners(items, packed)


def tower_blocks(model: nn.Module, arch: Architecture) -> list[nn.Module]:
    """The tower's blocks, in order; none where it has no blocks."""
    if _FIRST_BLOCK not in arch.points:
        return []
    path = arch.points[_FIRST_BLOCK].site.module
    return list(submodule(model, path.rpartition(".")[0]))


def _map(output: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """A block's output with `fn` on the residual stream in it."""
    if isinstance(output, Tensor):
        return fn(output)
    return (fn(output[0]), *output[1:])
