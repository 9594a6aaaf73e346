"""Pictures in a Pixtral tower: each keeps its shape, and all share one sequence of patches."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from vlm_lens.families.parts.pixels import Size, covered, identity_map, stretch_map
from vlm_lens.families.parts.projected import Picture, grid
from vlm_lens.layout.geometry import PixelMap
from vlm_lens.layout.layout import ImageSpace


def packed_pictures(
    inputs: Mapping[str, Tensor], patch: int, sizes: Sequence[Size] | None, merge: int = 1
) -> list[Picture]:
    """The pictures of a batch, which follow each other in the only row of the tower.

    Args:
        inputs: The processor's tensors; `image_sizes` are heights and widths after resizing.
        patch: Side of a patch in pixels.
        sizes: Width and height of each picture as given, if known.
        merge: Patches along the side of the block that becomes one position of the text.
    """
    pixels = inputs["pixel_values"]
    frames = inputs.get("image_sizes")
    frames = [pixels.shape[-2:]] * len(pixels) if frames is None else frames.tolist()
    pictures, seen, given = [], 0, 0
    for number, (height, width) in enumerate(frames):
        frame = (width, height)
        whole = identity_map(frame) if sizes is None else stretch_map(sizes[number], frame)
        rows, cols = height // patch, width // patch
        vision = _in_the_row(rows, cols, seen, covered(whole, rows, cols, patch))
        seen += rows * cols
        rows, cols = rows // merge, cols // merge
        merged = covered(whole, rows, cols, patch * merge)
        projector = _in_the_row(rows, cols, given, merged)
        given += rows * cols
        text = grid(rows, cols, 0, 0, merged)
        pictures.append(Picture(rows * cols, text, vision, projector))
    return pictures


def _in_the_row(rows: int, cols: int, start: int, pixels: PixelMap) -> ImageSpace:
    positions = tuple(range(start, start + rows * cols))
    return ImageSpace(grid(rows, cols, start, 0, pixels), ((0, positions),))


def end_of_image(processor: Any) -> tuple[Collection[int], Collection[int]]:
    """`[IMG_END]`, which closes a picture; `[IMG_BREAK]` stands within."""
    token = getattr(processor, "image_end_token_id", None)
    return (), () if token is None else (token,)
