"""Which pixels a model is given belong to which patch of its tower."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vlm_lens.prompts.prompt import Prompt


def packed(prompt: Prompt) -> list[list[int]]:
    """For each picture, the tower's position of each of its rows of pixels; empty if not known.

    Rows are sorted by what will be merged, blocks in reading order; a tower of windows reads them
    in another order (Qwen2.5-VL).
    """
    found = []
    for image in prompt.layout.images:
        grids = image.space("vision").grids, image.space("projector").grids
        if not all(grids):
            return []
        (fine, *_), (coarse, *_) = grids
        n = fine.rows // coarse.rows
        found.append(
            [
                fine.patch(r * n + i, c * n + j)
                for r in range(coarse.rows)
                for c in range(coarse.cols)
                for i in range(n)
                for j in range(n)
            ]
        )
    return found if sum(map(len, found)) == len(prompt.inputs["pixel_values"]) else []


def side_of(frame: Sequence[int], n_patches: int, stride: int) -> int:
    """How many pixels wide a patch is: the stride, or more where a tower merges patches (DaViT)."""
    whole = math.isqrt(math.prod(frame) // max(n_patches, 1))
    if any(n % stride for n in frame) and n_patches * whole**2 == math.prod(frame):
        return whole
    return stride
