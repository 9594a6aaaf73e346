"""LLaVA-OneVision: tiles for a picture alone in its text, one frame each for several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from vlm_lens.families.llava_next import dropped, sizes_as_given
from vlm_lens.families.parts.anyres_tiles import (
    Shrink,
    frame_side,
    in_frames,
    tiled_picture,
)
from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.picture import Picture, grid
from vlm_lens.families.parts.pixels import (
    Size,
    chain,
    covered,
    resize_and_crop_map,
    square_map,
    stretch_map,
)
from vlm_lens.families.parts.projected import ProjectedFamily
from vlm_lens.families.parts.selection import by_rows
from vlm_lens.layout.pictures import ImageLayout


class LlavaOnevisionFamily(ProjectedFamily):
    """`LlavaOnevisionForConditionalGeneration`, without videos."""

    name = "llava-onevision"
    model_types = ("llava_onevision",)

    def process(
        self, processor: Any, texts: list[str], pictures: list[list[Image.Image]], **options: Any
    ) -> Mapping[str, Any]:
        """Pictures are given text by text: one that is alone is cut into tiles, several are not."""
        nested = [row for row in pictures if row]
        return processor(text=texts, images=nested or None, **options)

    def select_pictures(
        self, tensors: Mapping[str, Tensor], pictures: Sequence[ImageLayout], numbers: Sequence[int]
    ) -> dict[str, Tensor] | None:
        """Their rows, where all of the batch are cut into tiles or none is."""
        counts = tensors.get("batch_num_images")
        tensors = {k: v for k, v in tensors.items() if k != "batch_num_images"}
        tiled = {True} if counts is None else {n == 1 for n in counts.tolist()}
        if len(tiled) > 1:
            return None
        if not tiled.pop():  # a text with one picture would mean tiles; more than there are do not
            more = {"batch_num_images": counts.new_tensor([max(2, len(numbers))])}
        else:
            more = {} if counts is None else {"batch_num_images": counts.new_ones(len(numbers))}
        found = by_rows(tensors, pictures, numbers)
        return None if found is None else found | more

    def pictures(self, batch: PictureBatch) -> list[Picture]:
        """In the text stand the whole picture's patches, then the mosaic of the tiles', if any."""
        given, config = sizes_as_given(batch), batch.config
        side = frame_side(batch) // batch.vision.patch_size
        shrink = _shrink(config.vision_aspect_ratio, side)
        counts = batch.inputs.get("batch_num_images")
        counts = [1] * len(given) if counts is None else counts.tolist()
        alone = [n == 1 for n in counts for _ in range(n)]
        pictures, first = [], 0
        for size, tiled in zip(given, alone, strict=True):
            if tiled:
                picture = tiled_picture(batch, first, size, dropped(config), shrink)
            else:
                picture = _squared(batch, first, size)
            pictures.append(picture)
            first += len(picture.vision.sequences)
        return pictures


def _shrink(aspect_ratio: str, side: int) -> Shrink:
    """A mosaic of more patches than `anyres_max_9` allows is interpolated to fewer."""
    most = int(aspect_ratio.removeprefix("anyres_max_"))

    def shrink(rows: int, cols: int) -> tuple[int, int]:
        ratio = math.sqrt(rows * cols / (most * side**2))
        return (int(rows // ratio), int(cols // ratio)) if ratio > 1.1 else (rows, cols)

    return shrink


def _squared(batch: PictureBatch, number: int, picture: Size) -> Picture:
    """A picture padded to a square, in one frame; a newline follows its patches in the text."""
    patch, n_class = batch.vision.patch_size, batch.vision.n_class_tokens
    side, frame = frame_side(batch) // patch, (frame_side(batch), frame_side(batch))
    square = square_map(picture)
    if batch.image_processor is None:
        fitted = stretch_map(square.frame, frame)
    else:
        fitted = resize_and_crop_map(batch.image_processor, square.frame, frame)
    seen = [covered(chain(square, fitted), side, side, patch)]
    before = n_class - dropped(batch.config)
    return Picture(
        before + side * side + 1,
        grid(side, side, before, 0, seen[0]),
        in_frames(number, seen, side, n_class),
        in_frames(number, seen, side, before),
    )
