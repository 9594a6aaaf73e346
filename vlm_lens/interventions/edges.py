"""Edges of attention: from which keys some queries read, in which blocks and heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vlm_lens.errors import InterventionError, PointError
from vlm_lens.integers import as_integer, as_integers
from vlm_lens.interventions.base import (
    EachLayer,
    Intervention,
    Target,
    freeze_heads,
    places,
)
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.ops import Op
from vlm_lens.points.table import PointTable


@dataclass(frozen=True)
class _Part:
    """Which attention is meant.

    Attributes:
        prefix: What its points' names start with.
        queries: Whose positions its queries are.
        crossing: Whether its blocks attend to another sequence than their queries'.
    """

    prefix: str
    queries: str
    crossing: bool = False


_PARTS = {
    "language": _Part("", "text"),
    "vision": _Part("vision.", "vision"),
    "encoder": _Part("encoder.", "encoder"),
    "cross": _Part("", "text", crossing=True),
}


@dataclass(frozen=True)
class AttentionEdges(Intervention):
    """What interventions on edges share; a subclass has fields `layers`, `heads` and `part`, too.

    Attributes:
        queries: Which positions look.
        keys: At which positions of the same prompt (in the tower: picture).
    """

    queries: Position
    keys: Position

    def __post_init__(self):
        given = vars(self)
        object.__setattr__(self, "queries", as_position(self.queries))
        object.__setattr__(self, "keys", as_position(self.keys))
        object.__setattr__(self, "heads", freeze_heads(given["heads"]))
        if given["layers"] is not None:
            object.__setattr__(self, "layers", _numbers(given["layers"]))
        if given["part"] not in _PARTS:
            known = "', '".join(_PARTS)
            raise InterventionError(f"part= is one of '{known}', not {given['part']!r}.")
        if self.keys.at_generated:
            raise InterventionError("keys= are positions of the prompt; new tokens are none.")

    def each_layer(self) -> EachWindow:
        """This intervention in each block alone, to be swept: windows of one block."""
        return self.each_window(1)

    def each_window(self, size: int) -> EachWindow:
        """This intervention in each window of blocks, to be swept.

        Args:
            size: Neighbouring blocks in a window.
        """
        return EachWindow(self, as_integer(size, "A window", InterventionError))

    def edges(self, target: Target, point: str, kind: str, **tensors: Tensor) -> Iterator[Op]:
        """An op at the edges in each block, and one more for new tokens.

        Args:
            target: The model and the prompt.
            point: `"hook_attn_scores"` or `"hook_pattern"`.
            kind: The op's.
            **tensors: The op's, beside `keys`.

        Raises:
            PointError: No such block or head, or no attention scores.
            PositionError: No such position in one of the prompts.
            InterventionError: No query comes after one of the keys.
        """
        part = _PARTS[vars(self)["part"]]
        names = self.names(target.points, point)
        space = target.points[names[0]].keys or part.queries
        pairs = [pair for layout in target.layouts for pair in self.keys.resolve(layout, space)]
        if not pairs:
            raise InterventionError(f"{self.keys} holds no position of this prompt.")
        keys = torch.tensor(pairs, dtype=torch.long)
        for place in places(target, names, self.queries, vars(self)["heads"]):
            cells = zip(place.rows, place.positions, strict=True)
            causal = place.since is None and space == "text" and not place.point.both_ways
            if causal and not _see(target, list(cells), pairs):
                raise InterventionError(
                    f"No position of {self.queries} comes after one of {self.keys}, so there is "
                    "nothing to cut or to change."
                )
            yield replace(place.op(kind, keys=keys, **tensors), crossing=part.crossing)

    def names(self, points: PointTable, point: str) -> tuple[str, ...]:
        """The points of the blocks meant.

        Raises:
            PointError: There is none, or no such block.
        """
        name, layers = vars(self)["part"], vars(self)["layers"]
        part = _PARTS[name]
        every = [
            n for n in points
            if n.startswith(f"{part.prefix}blocks.") and n.endswith(f"attn.{point}")
        ]  # fmt: skip
        known = [n for n in every if bool(points[n].keys) == part.crossing]
        if not known and part.crossing:
            raise PointError(
                "This model has no blocks of cross-attention: its pictures stand in the text, "
                "where part='language' is attention to them."
            )
        if not known:
            points.match(f"{part.prefix}blocks.*.attn.{point}")  # raises, and says why
        if layers is None:  # blocks that the projector does not read cannot be changed
            return tuple(n for n in known if points[n].writable)
        own = "cross_attn" if f"cross_attn.{point}" in known[0] else "attn"
        names = tuple(f"{part.prefix}blocks.{layer}.{own}.{point}" for layer in layers)
        for one in names:
            if one not in every:
                raise PointError(f"There is no {one}; there are {known[0]} to {known[-1]}.")
            if one not in known:
                other = "features of pictures" if not part.crossing else "positions of the prompt"
                named = "cross" if not part.crossing else "language"
                raise PointError(
                    f"The keys of {one} are {other}: leave this block out of layers=, or take "
                    f"part={named!r}."
                )
        return names


@dataclass(frozen=True)
class EachWindow(EachLayer):
    """An intervention on edges made once for each window of blocks.

    Attributes:
        size: Neighbouring blocks in a window.
    """

    size: int = 1

    def expand(self, points: PointTable) -> list[Intervention]:
        """One intervention a window, by its first block.

        Raises:
            InterventionError: A window of more blocks than there are.
        """
        names = self.intervention.names(points, "hook_pattern")
        layers = [points[name].layer for name in names]
        if not 1 <= self.size <= len(layers):
            raise InterventionError(f"A window has 1 to {len(layers)} blocks, not {self.size}.")
        starts = range(len(layers) - self.size + 1)
        windows = [tuple(layers[s : s + self.size]) for s in starts]
        return [replace(self.intervention, layers=window) for window in windows]


def _numbers(layers: Any) -> tuple[int, ...]:
    numbers = as_integers(layers, "A block in layers=", InterventionError)
    if not numbers or len(set(numbers)) < len(numbers):
        raise InterventionError(
            f"layers={list(numbers)} must name at least one block, each once; leave it out for all."
        )
    return numbers


def _see(target: Target, queries: list[tuple[int, int]], keys: list[tuple[int, int]]) -> bool:
    """Whether a query sees one of the keys: it comes later, or shares a picture with it."""
    first = {}
    for row, position in keys:
        first[row] = min(position, first.get(row, position))
    if any(position >= first.get(row, position + 1) for row, position in queries):
        return True
    pictures = [
        {(row, p) for row, positions in image.text.sequences for p in positions}
        for layout in target.layouts
        for image in layout.images
    ]
    return any(shown & set(queries) and shown & set(keys) for shown in pictures)
