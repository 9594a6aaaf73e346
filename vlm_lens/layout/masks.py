"""Masks over a picture, and rings of patches around chosen ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlm_lens.errors import PositionError
from vlm_lens.layout.geometry import PatchGrid
from vlm_lens.serial import FrozenTensor


def freeze_mask(given: Any) -> FrozenTensor:
    """A mask as a value, `[height, width]` of bools.

    Raises:
        PositionError: Not two axes, nothing inside, or numbers that are no mask.
    """
    if isinstance(given, FrozenTensor):
        given = given.data
    if isinstance(given, Image.Image) and given.mode not in ("1", "L"):
        raise PositionError(
            f"A mask is a picture of mode '1' or 'L', or an array, not a picture of {given.mode!r}."
        )
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu()
    try:
        mask = np.asarray(given)
    except ValueError:
        mask = np.empty(0)
    if mask.ndim != 2 or mask.dtype.kind not in "buif":
        raise PositionError(
            f"A mask is an array [height, width] of bools, not of shape {list(mask.shape)} and "
            f"{mask.dtype}."
        )
    if mask.dtype != bool:
        levels = np.unique(mask)
        if len(levels[levels != 0]) > 1:
            raise PositionError(
                f"A mask says of each pixel whether it is inside: bools, or 0 and another number; "
                f"this one holds {len(levels)} numbers from {levels[0]:g} to {levels[-1]:g}. "
                "Cut it first, mask > 0.5 for example."
            )
        mask = mask != 0
    if not mask.any():
        raise PositionError("The mask has no pixel inside, so it means no patch.")
    return FrozenTensor(torch.from_numpy(np.array(mask)))


def with_rings(
    grids: Sequence[PatchGrid], chosen: Sequence[tuple[int, int]], rings: int
) -> list[tuple[int, int]]:
    """Chosen patches with rings of neighbours around them, in the order of the grids.

    Neighbours are found by where patches lie in the picture, so that a ring goes on in the next
    tile; grids of another scale (the view of the whole picture beside its tiles) count by
    themselves.

    Args:
        grids: The picture's grids.
        chosen: (row, position) of patches.
        rings: How many rings.
    """
    wanted, found = set(chosen), []
    boxes = [_boxes(grid) for grid in grids]
    cells = [[(grid.row, p) for p in grid.positions] for grid in grids]
    for grid, mine, own in zip(grids, boxes, cells, strict=True):
        centres = np.concatenate(
            [
                box[[pair in wanted for pair in pairs]]
                for other, box, pairs in zip(grids, boxes, cells, strict=True)
                if np.allclose(other.pixels_of.scale, grid.pixels_of.scale)
            ]
        )
        # n - 1/2 patches further on each side reaches into the n-th neighbour and no further
        reach = (rings - 0.5) * (centres[:, 2:] - centres[:, :2])
        low, high = centres[:, :2] - reach, centres[:, 2:] + reach
        near = (mine[:, None, :2] < high) & (mine[:, None, 2:] > low)
        found += [pair for pair, hit in zip(own, near.all(-1).any(-1), strict=True) if hit]
    return found


def _boxes(grid: PatchGrid) -> np.ndarray:
    """`[patches, 4]`: each patch's box in pixels of the picture, also where it lies outside."""
    rows, cols = grid.spans
    (sx, sy), (ox, oy) = grid.pixels_of.scale, grid.pixels_of.offset
    return np.array(
        [
            ((x0 - ox) / sx, (y0 - oy) / sy, (x1 - ox) / sx, (y1 - oy) / sy)
            for (y0, y1), (x0, x1) in product(rows, cols)
        ]
    )
