"""Idefics3: tiles and a view of the whole, a pixel shuffle, markers of rows and columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from vlm_lens.errors import PromptError
from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.idefics_frames import IdeficsFamily, real_frames
from vlm_lens.families.parts.picture import Picture
from vlm_lens.families.parts.shuffled_tiles import Frame, tiled_pictures
from vlm_lens.tokens import tokenizer_of

_MARKER = re.compile(r"<row_(\d+)_col_(\d+)>")


class Idefics3Family(IdeficsFamily):
    """`Idefics3ForConditionalGeneration`.

    The markers between a picture's tiles belong to the picture, those before and after it are text.
    """

    name = "idefics3"
    model_types = ("idefics3",)

    def pictures(self, batch: PictureBatch) -> list[Picture]:
        """The token before a tile names its row and column, another one the whole picture."""
        patch = batch.vision.patch_size
        frame = Frame(batch.frame, (patch, patch), batch.config.scale_factor)
        n_frames = real_frames(batch.inputs["pixel_values"]).sum(1).tolist()
        rows = zip(batch.ids, batch.places, n_frames, strict=True)
        markers = [_markers(ids, places, frame.n_tokens, n) for ids, places, n in rows]
        found = [tiles for row in markers for tiles in _by_picture(row)]
        if batch.sizes and len(found) != len(batch.sizes):
            raise PromptError(
                f"The text marks {len(found)} whole pictures, and {len(batch.sizes)} were given: "
                "does the tokenizer know <global-img> and <row_1_col_1> as tokens?"
            )
        tilings = [_tiling(tiles, batch.processor) for tiles in found]
        return tiled_pictures(batch, frame, [len(tiles) + 1 for tiles in found], tilings)


def _markers(ids: Sequence[int], positions: Sequence[int], per_frame: int, n: int) -> list[int]:
    """The token before each frame of a row.

    Raises:
        PromptError: Image tokens and frames do not match.
    """
    if len(positions) != n * per_frame:
        raise PromptError(
            f"{n} frames (tiles and whole pictures) of {per_frame} positions need "
            f"{n * per_frame} image tokens; this row of the prompt holds {len(positions)}. Write "
            "one <image> for each picture."
        )
    return [ids[start - 1] for start in positions[::per_frame]]


def _by_picture(markers: Sequence[int]) -> Iterator[list[int]]:
    """The markers of each picture's tiles; a whole picture, the last of a row too, ends one."""
    tiles: list[int] = []
    for marker in markers:
        if marker == markers[-1]:
            yield tiles
            tiles = []
        else:
            tiles.append(marker)


def _tiling(tiles: Sequence[int], processor: Any) -> tuple[int, int] | None:
    """Rows and columns of tiles, which the last tile's marker names."""
    tokenizer = tokenizer_of(processor)
    if not tiles or tokenizer is None:
        return None
    found = _MARKER.fullmatch(str(tokenizer.convert_ids_to_tokens(tiles[-1])))
    if not found:
        return None
    rows, cols = int(found[1]), int(found[2])
    return (rows, cols) if rows * cols == len(tiles) else None
