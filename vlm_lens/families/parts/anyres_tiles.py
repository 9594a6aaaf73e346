"""Pictures that a tower reads as a view of the whole and as tiles, put together again in the text.

The way of LLaVA-NeXT and LLaVA-OneVision ("any resolution"): the picture is fitted into the best of
some resolutions, padded, and cut into tiles; after the projector the tiles' patches are one mosaic
again, what was padding is cut off, and a newline follows each of its rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.picture import Picture, grid
from vlm_lens.families.parts.pixels import (
    Size,
    chain,
    covered,
    resize_and_crop_map,
    size_entry,
    stretch_map,
    window_map,
)
from vlm_lens.layout.geometry import PatchGrid, PixelMap, Spans
from vlm_lens.layout.pictures import ImageSpace

Shrink = Callable[[int, int], tuple[int, int]]


def tiled_picture(
    batch: PictureBatch,
    first: int,
    picture: Size,
    dropped: int,
    shrink: Shrink = lambda rows, cols: (rows, cols),
) -> Picture:
    """A picture as a view of the whole and tiles; what whole patches leave over is not seen.

    Args:
        batch: The batch; its model's `image_grid_pinpoints` are the resolutions, height and width,
            that a picture may be fitted into.
        first: The number of its first frame on the tower's first axis.
        picture: Its width and height.
        dropped: How many of the tower's first positions do not enter the projector.
        shrink: From the mosaic's rows and columns to those that it is interpolated to.
    """
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    tile, patch, image_processor = frame_side(batch), batch.vision.patch_size, batch.image_processor
    pinpoints = list(batch.config.image_grid_pinpoints)
    height, width = select_best_resolution((picture[1], picture[0]), pinpoints)
    down, across, side = height // tile, width // tile, tile // patch
    mosaic = _fitted(picture, (width, height))
    settle = _within_tile(image_processor, tile)
    frames = [chain(_whole(image_processor, picture, tile), settle)]
    for row in range(down):
        for col in range(across):
            frames.append(chain(window_map(mosaic, (col * tile, row * tile), (tile, tile)), settle))
    frames = [covered(frame, side, side, patch) for frame in frames]

    before = batch.vision.n_class_tokens - dropped
    start = before + side * side  # the view of the whole comes first
    grids = list(grid(side, side, before, 0, frames[0]))
    shape = (1, down * side, across * side)
    kept = unpad_image(torch.arange(shape[1] * shape[2]).view(shape), (picture[1], picture[0]))[0]
    rows, cols = kept.shape
    if kept.numel():
        top, left = divmod(int(kept[0, 0]), shape[2])
        n_rows, n_cols = shrink(rows, cols)
        cuts = (
            _spans(top, rows, n_rows, side, tile, patch),
            _spans(left, cols, n_cols, side, tile, patch),
        )
        rows, cols = n_rows, n_cols
        positions = tuple(start + r * (cols + 1) + c for r in range(rows) for c in range(cols))
        grids.append(PatchGrid(rows, cols, positions, 0, mosaic, cuts))
    return Picture(
        start + rows * (cols + 1),
        tuple(grids),
        in_frames(first, frames, side, batch.vision.n_class_tokens),
        in_frames(first, frames, side, before),
    )


def frame_side(batch: PictureBatch) -> int:
    """Side of a tower's frames in pixels."""
    side = batch.vision.image_size
    assert side is not None, "these towers read frames of one size"
    return side


def _spans(first: int, n: int, to: int, side: int, tile: int, patch: int) -> Spans:
    """Begin and end of `to` cells over `n` patches from `first` on, along an axis of a mosaic."""

    def edge(index: int, within: float) -> float:
        return index // side * tile + (index % side + within) * patch

    spans = []
    for i in range(to):
        a, b = first + i * n / to, first + (i + 1) * n / to
        last = math.ceil(b) - 1  # the patch that holds the end
        spans.append((edge(math.floor(a), a % 1), edge(last, b - last)))
    return tuple(spans)


def in_frames(first: int, frames: Sequence[PixelMap], side: int, before: int) -> ImageSpace:
    """Frames on the first axis of the tower's or the projector's output."""
    grids = [g for i, f in enumerate(frames) for g in grid(side, side, before, first + i, f)]
    positions = tuple(range(before + side * side))
    return ImageSpace(tuple(grids), tuple((first + i, positions) for i in range(len(frames))))


def _fitted(picture: Size, frame: Size) -> PixelMap:
    """A resize that keeps the shape, and padding on both sides."""
    import numpy as np
    from transformers.image_processing_utils import get_patch_output_size

    shape = np.broadcast_to(np.uint8(0), (3, picture[1], picture[0]))
    new_height, new_width = get_patch_output_size(shape, (frame[1], frame[0]), "channels_first")
    left, top = (frame[0] - new_width) // 2, (frame[1] - new_height) // 2
    scale = (new_width / picture[0], new_height / picture[1])
    return PixelMap(picture, frame, scale, (left, top))


def _whole(image_processor: Any, picture: Size, tile: int) -> PixelMap:
    """The view of the whole picture before it goes the way of a tile."""
    size = getattr(image_processor, "size", None) or {}
    side = size_entry(size, "shortest_edge") or tile
    width, height = size_entry(size, "width") or side, size_entry(size, "height") or side
    return stretch_map(picture, (width, height))


def _within_tile(image_processor: Any, tile: int) -> PixelMap:
    """What happens to a tile after it was cut out: usually nothing."""
    if image_processor is None:
        return stretch_map((tile, tile), (tile, tile))
    return resize_and_crop_map(image_processor, (tile, tile), (tile, tile))
