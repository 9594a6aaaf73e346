"""Idefics3: tiles and a view of the whole, a pixel shuffle, markers of rows and columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_lens.errors import PromptError
from vlm_lens.families.base import Architecture
from vlm_lens.families.parts.idefics_frames import IdeficsFamily, real_frames
from vlm_lens.families.parts.projected import Picture
from vlm_lens.families.parts.shuffled_tiles import Frame, tiles_and_whole
from vlm_lens.tokens import tokenizer_of

_MARKER = re.compile(r"<row_(\d+)_col_(\d+)>")


class Idefics3Family(IdeficsFamily):
    """`Idefics3ForConditionalGeneration`.

    The markers between a picture's tiles belong to the picture, those before and after it are text.
    """

    name = "idefics3"
    model_types = ("idefics3",)

    def pictures(
        self,
        model: torch.nn.Module,
        arch: Architecture,
        inputs: Mapping[str, Tensor],
        processor: Any,
        sizes: Sequence[tuple[int, int]] | None,
    ) -> list[Picture]:
        """The token before a tile names its row and column, another one the whole picture."""
        pixels, patch = inputs["pixel_values"], arch.cfg.vision.patch_size
        shape = (pixels.shape[-1], pixels.shape[-2])
        frame = Frame(shape, (patch, patch), model.config.scale_factor)
        n_frames = real_frames(pixels).sum(1).tolist()
        rows = zip(inputs["input_ids"].tolist(), n_frames, strict=True)
        markers = [_markers(ids, arch.image_token_id, frame.n_tokens, n) for ids, n in rows]
        found = [tiles for row in markers for tiles in _by_picture(row)]
        if sizes and len(found) != len(sizes):
            raise PromptError(
                f"The text marks {len(found)} whole pictures, and {len(sizes)} were given: does "
                "the tokenizer know <global-img> and <row_1_col_1> as tokens?"
            )
        pictures, first = [], 0
        for tiles, size in zip(found, sizes or [None] * len(found), strict=True):
            n = len(tiles) + 1
            pictures.append(tiles_and_whole(first, n, frame, size, _tiling(tiles, processor)))
            first += n
        return pictures


def _markers(ids: Sequence[int], image_token: int | None, per_frame: int, n: int) -> list[int]:
    """The token before each frame of a row.

    Raises:
        PromptError: Image tokens and frames do not match.
    """
    positions = [i for i, token in enumerate(ids) if token == image_token]
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
