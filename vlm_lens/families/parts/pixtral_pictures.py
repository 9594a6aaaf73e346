"""Pictures in a Pixtral tower: each keeps its shape, and all share one sequence of patches."""

from __future__ import annotations

from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.picture import Picture, grid, packed_space
from vlm_lens.families.parts.pixels import covered


def packed_pictures(batch: PictureBatch, merge: int = 1) -> list[Picture]:
    """The pictures of a batch, which follow each other in the only row of the tower.

    Args:
        batch: The batch; `image_sizes` among its tensors are heights and widths after resizing.
        merge: Patches along the side of the block that becomes one position of the text.
    """
    pixels, patch = batch.inputs["pixel_values"], batch.vision.patch_size
    frames = batch.inputs.get("image_sizes")
    frames = [pixels.shape[-2:]] * len(pixels) if frames is None else frames.tolist()
    pictures, seen, given = [], 0, 0
    for number, (height, width) in enumerate(frames):
        whole = batch.stretched(number, (width, height))
        rows, cols = height // patch, width // patch
        places = range(seen, seen := seen + rows * cols)
        vision = packed_space(rows, cols, places, covered(whole, rows, cols, patch))
        rows, cols = rows // merge, cols // merge
        merged = covered(whole, rows, cols, patch * merge)
        places = range(given, given := given + rows * cols)
        projector = packed_space(rows, cols, places, merged)
        pictures.append(Picture(rows * cols, grid(rows, cols, 0, 0, merged), vision, projector))
    return pictures
