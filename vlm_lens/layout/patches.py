"""Patches of a picture: rows and columns of its grid, a box of pixels, a mask; rings around."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vlm_lens.errors import PositionError
from vlm_lens.integers import as_integer, is_integer
from vlm_lens.layout.layout import Layout
from vlm_lens.layout.masks import freeze_mask, with_rings
from vlm_lens.layout.position import Pairs, Position
from vlm_lens.serial import savable


@savable
@dataclass(frozen=True)
class Patches(Position):
    """Patches of one picture: all, rows and columns of the grid, a box of pixels, or a mask.

    Attributes:
        image: Which picture of the prompt, from 0.
        rows: Rows of the grid, as `(start, stop)`, one number or `None` for all.
        cols: Columns of the grid, likewise.
        box: `(x0, y0, x1, y1)` in pixels of the picture as given, instead of rows and columns; on a
            model that cuts pictures into tiles, every tile that sees the box counts.
        grid: Which grid `rows` and `cols` count in, on a model that cuts pictures into tiles; 0 is
            the view of the whole picture.
        mask: `[height, width]` of the picture as given, true inside (bools, two whole numbers of
            which the larger is inside, or a picture of mode "1" or "L"), instead of rows, columns
            or a box; every tile that sees of it counts.
        min_share: With a mask: which share of a patch it covers at least, from 0 (any part of it)
            to 1. The whole patch counts, also where it lies in padding.
        ring: How many rings of neighbouring patches are added around those chosen, diagonal ones
            included, across the tiles of one scale.
    """

    image: int = 0
    rows: int | tuple[int, int] | None = None
    cols: int | tuple[int, int] | None = None
    box: tuple[float, float, float, float] | None = None
    grid: int = 0
    mask: Any = None
    min_share: float = 0.0
    ring: int = 0

    def __post_init__(self):
        in_grid = self.rows is not None or self.cols is not None
        if (self.box is not None) + (self.mask is not None) + in_grid > 1:
            raise PositionError("Patches takes rows and cols, or a box, or a mask: only one.")
        for name in ("image", "grid", "ring"):
            what = {"image": "A picture", "grid": "A grid", "ring": "A number of rings"}[name]
            object.__setattr__(self, name, as_integer(getattr(self, name), what, PositionError))
        for name in ("rows", "cols"):
            object.__setattr__(self, name, _stretch(name, getattr(self, name)))
        if self.box is not None:
            object.__setattr__(self, "box", _box(self.box))
        if self.mask is not None:
            object.__setattr__(self, "mask", freeze_mask(self.mask))
        object.__setattr__(self, "min_share", _share(self.min_share, self.mask))
        if self.ring < 0:
            raise PositionError(f"ring counts rings of patches, 0 or more, not {self.ring}.")

    def _in_text(self, layout: Layout) -> Iterable[int]:
        return [p for _, p in self._in_pictures(layout, "text")]

    def _in_pictures(self, layout: Layout, space: str) -> Pairs:
        picture = layout.image[self.image].space(space)
        if self.box is not None:
            chosen = picture.box(*self.box)
        elif self.mask is not None:
            chosen = picture.mask(self.mask.data.numpy(), self.min_share)
        else:
            grid = picture.grid(self.grid)
            rows, cols = _range(self.rows, grid.rows), _range(self.cols, grid.cols)
            chosen = [(grid.row, grid.patch(r, c)) for r in rows for c in cols]
        return with_rings(picture.grids, chosen, self.ring) if self.ring else chosen


def _stretch(name: str, given: Any) -> int | tuple[int, int] | None:
    """One row, or the first and one past the last; a list would be taken for its entries."""
    if given is None or is_integer(given):
        return None if given is None else operator.index(given)
    if not isinstance(given, tuple) or len(given) != 2:
        raise PositionError(
            f"{name} is one number or (start, stop), not {given!r}: for several that are no "
            "stretch, use one Patches(...) each."
        )
    start, stop = (as_integer(g, f"An end of {name}", PositionError) for g in given)
    return start, stop


def _share(given: Any, mask: Any) -> float:
    try:
        share = float(given)
    except (TypeError, ValueError):
        share = -1.0
    if not 0 <= share <= 1:
        raise PositionError(f"min_share is a share of a patch, from 0 to 1, not {given!r}.")
    if share and mask is None:
        raise PositionError("min_share says how much of a patch a mask covers: give mask= too.")
    return share


def _box(given: Any) -> tuple[float, float, float, float]:
    try:
        x0, y0, x1, y1 = (float(v) for v in given)
    except (TypeError, ValueError):
        raise PositionError(f"box is (x0, y0, x1, y1) in pixels, not {given!r}.") from None
    if not (x0 < x1 and y0 < y1):
        raise PositionError(f"box={given} holds no pixel: give x0 < x1 and y0 < y1.")
    return x0, y0, x1, y1


def _range(chosen: int | tuple[int, int] | None, size: int) -> range:
    if chosen is None:
        return range(size)
    if isinstance(chosen, int):
        if not -size <= chosen < size:
            raise PositionError(f"There is no patch {chosen} in a grid of {size}, 0-based.")
        return range(chosen % size, chosen % size + 1)
    start, stop = chosen
    if not 0 <= start < stop <= size:
        raise PositionError(
            f"({start}, {stop}) is no range of a grid of {size}: give 0 <= start < stop."
        )
    return range(start, stop)
