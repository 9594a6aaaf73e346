"""Attention knockout: queries that may not see some keys."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from vlm_lens.errors import InterventionError, PointError
from vlm_lens.interventions.base import (
    EachLayer,
    Intervention,
    Target,
    freeze_heads,
    places,
)
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.ops import BLOCK, Op
from vlm_lens.points.table import PointTable
from vlm_lens.serial import savable

_PARTS = {"language": ("", "text"), "vision": ("vision.", "vision")}


@savable
@dataclass(frozen=True)
class AttentionKnockout(Intervention):
    """Hides keys from queries: minus infinity is added to the masked scores before softmax.

    Geva et al. 2023 (2304.14767). The model's own mask stays as it is (padding, sliding windows,
    pictures that are seen both ways), and the weights of the keys that are left sum to 1. Only the
    edges named are cut: what a key gave to other positions in earlier blocks still flows from
    there, so a window of blocks is the usual choice.

    Attributes:
        queries: Which positions look; `Last() + Generated()` for the last one and all new tokens.
        keys: Which positions of the same prompt (in the tower: picture) they do not see.
        layers: Which blocks; by default all that are read (a projector may read an earlier block
            of the tower than its last).
        heads: Which heads (of the queries); all by default.
        part: `"language"` or `"vision"`.
    """

    queries: Position
    keys: Position
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    part: str = "language"

    def __post_init__(self):
        object.__setattr__(self, "queries", as_position(self.queries))
        object.__setattr__(self, "keys", as_position(self.keys))
        object.__setattr__(self, "heads", freeze_heads(self.heads))
        if self.layers is not None:
            object.__setattr__(self, "layers", _numbers(self.layers))
        if self.part not in _PARTS:
            raise InterventionError(f"part= is 'language' or 'vision', not {self.part!r}.")
        if self.keys.at_generated:
            raise InterventionError("keys= are positions of the prompt; new tokens are none.")

    def each_window(self, size: int) -> EachWindow:
        """This knockout in each window of blocks, to be swept.

        Args:
            size: Neighbouring blocks in a window.
        """
        return EachWindow(self, size)

    def lower(self, target: Target) -> list[Op]:
        """One `block` op a block, and one more for new tokens.

        Raises:
            PointError: No such block or head, or no attention scores.
            PositionError: No such position in one of the prompts.
            InterventionError: No query comes after one of the keys.
        """
        prefix, space = _PARTS[self.part]
        names = _scores(target.points, prefix, self.layers)
        keys = [pair for layout in target.layouts for pair in self.keys.resolve(layout, space)]
        if not keys:
            raise InterventionError(f"{self.keys} holds no position of this prompt.")
        ops = []
        for place in places(target, names, self.queries, self.heads):
            cells = zip(place.rows, place.positions, strict=True)
            if place.since is None and space == "text" and not _cuts(target, list(cells), keys):
                raise InterventionError(
                    f"No position of {self.queries} comes after one of {self.keys}, so there is "
                    "nothing to cut."
                )
            ops.append(place.op(BLOCK, keys=torch.tensor(keys, dtype=torch.long)))
        return ops


@savable
@dataclass(frozen=True)
class EachWindow(EachLayer):
    """A knockout made once for each window of blocks that attend to the prompt.

    Attributes:
        size: Neighbouring blocks in a window.
    """

    size: int = 1

    def expand(self, points: PointTable) -> list[Intervention]:
        """One knockout a window, by its first block.

        Raises:
            InterventionError: A window of more blocks than there are.
        """
        prefix, _ = _PARTS[self.intervention.part]
        layers = [points[name].layer for name in _scores(points, prefix, self.intervention.layers)]
        if not 1 <= self.size <= len(layers):
            raise InterventionError(f"A window has 1 to {len(layers)} blocks, not {self.size}.")
        starts = range(len(layers) - self.size + 1)
        windows = [tuple(layers[s : s + self.size]) for s in starts]
        return [replace(self.intervention, layers=window) for window in windows]


def _numbers(layers: Any) -> tuple[int, ...]:
    many = layers if isinstance(layers, Iterable) else (layers,)
    try:
        numbers = tuple(map(operator.index, many))
    except TypeError:
        raise InterventionError(f"layers= takes a number or several, not {layers!r}.") from None
    if not numbers:
        raise InterventionError("layers= names no block: leave it out for all.")
    return numbers


def _scores(points: PointTable, prefix: str, layers: tuple[int, ...] | None) -> tuple[str, ...]:
    """The points of the scores of some blocks.

    Raises:
        PointError: There is none, or no such block.
    """
    known = points.match(f"{prefix}blocks.*.attn.hook_attn_scores")
    if layers is None:
        names = tuple(n for n in known if points[n].writable and not points[n].pictures_only)
    else:
        names = tuple(f"{prefix}blocks.{layer}.attn.hook_attn_scores" for layer in layers)
    for name in names:
        if name not in known:
            raise PointError(f"There is no {name}; there are {known[0]} to {known[-1]}.")
        if points[name].pictures_only:
            raise PointError(
                f"The keys of {name} are features of pictures (cross-attention), not positions of "
                "the prompt: leave this block out of layers=."
            )
    return names


def _cuts(target: Target, queries: list[tuple[int, int]], keys: list[tuple[int, int]]) -> bool:
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
