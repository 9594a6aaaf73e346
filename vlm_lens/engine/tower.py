"""Variants that act on tower or projector, computed for the pictures that they touch.

A picture's tower sees all of the picture at every block, so nothing before the first block that a
variant touches has to be computed again, and everything after it has. The model's own code runs on
the pictures touched, one copy a variant, with the results of earlier blocks given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from vlm_lens.engine.handlers import read_handler
from vlm_lens.engine.hooks import HookedRun
from vlm_lens.engine.joining import Cell, CountedOp, joined_handlers
from vlm_lens.engine.not_replayable import NotReplayable
from vlm_lens.engine.pictures import NotSeparable, Pictures
from vlm_lens.engine.stand_ins import standing_in
from vlm_lens.engine.tower_rows import JoiningRows, counts_rows, on_stream
from vlm_lens.errors import InterventionError
from vlm_lens.families import Architecture
from vlm_lens.layout.pictures import ImageLayout
from vlm_lens.ops import Op
from vlm_lens.points.point import Point
from vlm_lens.points.sites import submodule

_FIRST_BLOCK = "vision.blocks.0.hook_resid_post"


@dataclass(frozen=True)
class TowerStart:
    """From where a variant differs before the language model.

    Attributes:
        pictures: The pictures that it touches, by number.
        layer: The first tower block that must be run again; as many as there are if none must.
        joint: Whether its ops act on the pictures together, so that it runs by itself, on all.
    """

    pictures: tuple[int, ...]
    layer: int
    joint: bool = False


@dataclass(frozen=True)
class ChangedPictures:
    """What a variant makes of the pictures that it touches.

    Attributes:
        features: Picture -> `[streams, positions, d_model]`; see `Pictures.features`.
        read: Point name -> cell of the recorded run -> the activation there.
    """

    features: dict[int, Tensor] = field(default_factory=dict)
    read: dict[str, dict[Cell, Tensor]] = field(default_factory=dict)


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
        self.blocks = tower_blocks(model, arch)
        self._adds_positions = adds_positions
        self._position_streams: list[Tensor] = []  # for each picture, what is added to its features
        self._outputs: list[Any] = []  # of each block in the recorded run
        self._rows_counted = not pictures.packed
        self._index = {
            space: _index_of([p.layout for p in pictures.shown], space, packed=pictures.packed)
            for space in ("vision", "projector")
        }

    @contextmanager
    def recording(self) -> Iterator[None]:
        """While open, what the tower's blocks give is kept."""

        def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            self._outputs.append(output)
            self._rows_counted = self._rows_counted and counts_rows(args, kwargs, output)

        handles = [
            block.register_forward_hook(keep, prepend=True, with_kwargs=True)
            for block in self.blocks
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def together(self, start: TowerStart, number: int) -> int:
        """A key that is equal for variants which `replay` can run together.

        Args:
            start: What a variant touches.
            number: A number that no other variant has.
        """
        if start.joint:
            return -1 - number
        return 0 if self._rows_counted else start.layer

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
            [stream[p.row, list(p.positions)] for stream in recorded] for p in self.pictures.shown
        ]
        if self._adds_positions:
            self._position_streams = [
                whole[0].to(mine.device) - mine[0]
                for whole, mine in zip(expected, found, strict=True)
            ]
            return
        for theirs, mine in zip(expected[0], found[0], strict=True):
            whole = theirs.to(mine.device)
            scale = whole.abs().max()
            if (whole - mine).abs().max() > torch.finfo(mine.dtype).eps ** 0.5 * scale:
                raise NotReplayable("picture features do not stand in the text as they are")

    def start_of(self, ops: Sequence[Op]) -> TowerStart:
        """From where ops at tower and projector make a difference.

        Raises:
            NotReplayable: A cell that belongs to no picture.
        """
        layer, touched, joint = len(self.blocks), set(), False
        for op in ops:
            point = self.arch.points[op.point]
            if point.name == "vision.hook_embed":
                layer = 0
            elif point.layer is not None and point.name.startswith("vision.blocks."):
                layer = min(layer, point.layer)
            for cell in zip(op.rows, op.positions, strict=True):
                picture = self._index[point.space].picture_at(*cell)
                if picture is None:
                    raise NotReplayable(
                        f"it acts at a position of {point.name} that belongs to no picture"
                    )
                touched.add(picture)
            joint |= self.pictures.packed and point.on_demand
        numbers = range(len(self.pictures)) if joint else sorted(touched)
        return TowerStart(tuple(numbers), layer, joint)

    def replay(
        self,
        starts: Sequence[TowerStart],
        ops: Sequence[Sequence[CountedOp]],
        cells: Mapping[str, Sequence[Cell]],
    ) -> list[ChangedPictures]:
        """Runs the pictures that some variants touch, one copy of each for each variant.

        Args:
            starts: For each variant, what it touches, ascending by layer; see `together`.
            ops: For each variant, its ops at tower and projector.
            cells: Point name -> cells of the recorded run where it is read.
        """
        copies = [(v, n) for v, start in enumerate(starts) for n in start.pictures]
        copy_of = {copy: i for i, copy in enumerate(copies)}
        numbers = [n for _, n in copies]
        moved = [
            [self._moved(op, numbers, lambda n, v=v: copy_of.get((v, n))) for op in mine]
            for v, mine in enumerate(ops)
        ]
        store: dict[str, Tensor] = {}
        handlers = joined_handlers(moved)
        for name in cells:
            handlers.setdefault(name, []).append(read_handler(store, lambda x, firing: x))
        items = self._index["vision"].items
        join = [start.layer for start in starts for n in start.pictures for _ in items[n]]
        rows = JoiningRows(self.blocks, join, lambda i, first: self._copied(i, numbers, first))
        run = HookedRun(self.model, self.arch.points, handlers)
        with rows.completing(), run, rows.computing():
            features = self.features(numbers, starts[0].layer)
        for name in cells:
            layer = self.arch.points[name].layer
            if name not in store and (layer is None or layer >= starts[0].layer):
                raise InterventionError(not_fired(name))
        changed = [ChangedPictures() for _ in starts]
        for i, (v, n) in enumerate(copies):
            if self._position_streams:
                first = features[i][:1] + self._position_streams[n]
                features[i] = torch.cat([first, features[i][1:]])
            changed[v].features[n] = features[i]
            for name, value in store.items():
                read = self._read(self.arch.points[name], value, cells[name], numbers, i)
                changed[v].read.setdefault(name, {}).update(read)
        return changed

    def _moved(
        self, counted: CountedOp, numbers: Sequence[int], copy_of: Callable[[int], int | None]
    ) -> CountedOp:
        """An op with its cells counted in a run of copies of pictures.

        Keys in a picture that is not among them are none that a query of it could see.
        """
        index = self._index[self.arch.points[counted.op.point].space]
        starts = index.starts(numbers)

        def move(row: int, position: int) -> Cell | None:
            copy = copy_of(index.picture_at(row, position))
            return None if copy is None else index.moved(row, position, starts[copy])

        return counted.moved(move)

    def _read(
        self,
        point: Point,
        value: Tensor,
        cells: Sequence[Cell],
        numbers: Sequence[int],
        copy: int,
    ) -> dict[Cell, Tensor]:
        """The activation at those cells that belong to one copy of a picture."""
        index = self._index[point.space]
        start = index.starts(numbers)[copy]
        if not index.packed and start >= len(value):
            return {}  # where it joins later: that is recorded
        value = value.transpose(1, 2) if "query" in point.axes else value
        return {
            cell: value[index.moved(*cell, start)]
            for cell in cells
            if index.picture_at(*cell) == numbers[copy]
        }

    def features(self, numbers: Sequence[int], layer: int) -> list[Tensor]:
        """Features of some pictures, the results of the tower's blocks before `layer` given."""
        given = {
            block: lambda i=i: on_stream(self._outputs[i], lambda x: self._of_pictures(x, numbers))
            for i, block in enumerate(self.blocks[:layer])
        }
        with standing_in(given):
            return self.pictures.features(numbers)

    def _copied(self, block: int, numbers: Sequence[int], first: int) -> Tensor:
        """What a block gave in the recorded run, for copies of pictures, from one row on."""
        output = self._outputs[block]
        stream = output if isinstance(output, Tensor) else output[0]
        items = [i for n in numbers for i in self._index["vision"].items[n]]
        return stream.index_select(0, torch.tensor(items[first:], device=stream.device))

    def _of_pictures(self, x: Tensor, numbers: Sequence[int]) -> Tensor:
        """Of a tensor of the recorded tower, what belongs to some pictures."""
        items = self._index["vision"].items
        index = torch.tensor([i for n in numbers for i in items[n]], device=x.device)
        axis = x.dim() - 2 if self.pictures.packed else 0
        return x.index_select(axis, index)


@dataclass(frozen=True)
class _PictureIndex:
    """Which picture each row (or, where pictures are packed, each position) belongs to.

    Attributes:
        items: For each picture, its rows or positions, ascending.
        packed: Whether these are positions.
    """

    items: list[list[int]]
    packed: bool

    @cached_property
    def _pictures(self) -> dict[int, tuple[int, int]]:
        """Row or position -> its picture, and which of that picture's it is."""
        return {item: (n, i) for n, mine in enumerate(self.items) for i, item in enumerate(mine)}

    def picture_at(self, row: int, position: int) -> int | None:
        """The picture that a cell belongs to."""
        return self._pictures.get(position if self.packed else row, (None, 0))[0]

    def starts(self, numbers: Sequence[int]) -> list[int]:
        """Where each of some pictures begins in a run of them alone."""
        return [0, *accumulate(len(self.items[n]) for n in numbers)]

    def moved(self, row: int, position: int, start: int) -> Cell:
        """A cell of a picture where that picture begins at `start`."""
        _, rank = self._pictures[position if self.packed else row]
        return (row, start + rank) if self.packed else (start + rank, position)


def _index_of(layouts: Sequence[ImageLayout], space: str, *, packed: bool) -> _PictureIndex:
    items = []
    for layout in layouts:
        sequences = layout.space(space).sequences
        found = {p for _, ps in sequences for p in ps} if packed else {r for r, _ in sequences}
        items.append(sorted(found))
    return _PictureIndex(items, packed)


def not_fired(name: str) -> str:
    """The message where a point that a replay computes was not seen by its reader."""
    return (
        f"{name} did not fire in a replay, so it cannot be captured there: is the model compiled, "
        "or its module replaced? engine='full' runs the whole model."
    )


def tower_blocks(model: nn.Module, arch: Architecture) -> list[nn.Module]:
    """The tower's blocks, in order; none where it has no blocks."""
    if _FIRST_BLOCK not in arch.points:
        return []
    path = arch.points[_FIRST_BLOCK].site.module
    return list(submodule(model, path.rpartition(".")[0]))
