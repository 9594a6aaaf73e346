"""Where two prompts differ: the tokens, and the patches whose pixels do."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from PIL import Image

from vlm_lens.errors import PositionError
from vlm_lens.layout.cells import Cell, Cells
from vlm_lens.layout.kinds import PAD
from vlm_lens.layout.pictures import ImageSpace
from vlm_lens.layout.position_map import PositionMap
from vlm_lens.pictures import as_read
from vlm_lens.prompts.prompt import Prompt


def changed_cells(clean: Prompt, corrupt: Prompt, positions: PositionMap) -> Cells:
    """Where a clean prompt differs from the corrupt one: tokens, and patches by their pixels.

    A token without counterpart differs. Of a picture whose positions hold no single patches, or
    whose counterpart has another size, every position does where a pixel does. In tower and
    projector these are the patches that see another pixel themselves.

    Raises:
        PositionError: The prompts differ nowhere.
    """
    here, there = positions.clean, positions.corrupt
    pictures = {p for image in here.images for p in image.positions}
    other = dict(positions.text)
    words = {
        (here.row, p)
        for p, kind in enumerate(here.kinds)
        if kind != PAD and p not in pictures
        and (p not in other or here.token_ids[p] != there.token_ids[other[p]])
    }  # fmt: skip
    shown = [prompt.images[0] if prompt.images else () for prompt in (clean, corrupt)]
    found = {
        space: sorted(
            {cell for image, one, two in zip(here.images, *shown, strict=False)
             for cell in _changed_patches(image.space(space), one, two)}
            | (words if space == "text" else set())
        )
        for space in ("text", "vision", "projector")
    }  # fmt: skip
    if not any(found.values()):
        raise PositionError("The clean and the corrupt prompt are equal at every position.")
    return Cells.of(found)


def differing_pictures(clean: Prompt, corrupt: Prompt) -> list[int]:
    """The numbers of the pictures that are not equal, pixel for pixel."""
    shown = (prompt.images[0] if prompt.images else () for prompt in (clean, corrupt))
    return [i for i, (a, b) in enumerate(zip(*shown, strict=False)) if not _equal(a, b)]


def _changed_patches(picture: ImageSpace, one: Image.Image, two: Image.Image) -> Iterator[Cell]:
    if _equal(one, two):
        return
    differs = _difference(one, two)
    if differs is None or not picture.grids:
        yield from ((row, p) for row, positions in picture.sequences for p in positions)
        return
    for grid in picture.grids:
        for position in grid.positions:
            x0, y0, x1, y1 = grid.pixels(position)
            if differs[math.floor(y0) : math.ceil(y1), math.floor(x0) : math.ceil(x1)].any():
                yield grid.row, position


def _equal(one: Image.Image, two: Image.Image) -> bool:
    differs = _difference(one, two)
    return differs is not None and not differs.any()


def _difference(one: Image.Image, two: Image.Image) -> np.ndarray | None:
    """Where two pictures differ, `[height, width]`; `None` where their sizes do."""
    if one.size != two.size:
        return None
    return (np.asarray(as_read(one)) != np.asarray(as_read(two))).any(-1)
