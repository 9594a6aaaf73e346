"""Aya Vision: a SigLIP tower that reads tiles and the whole, a pixel shuffle, a Cohere."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlm_lens.errors import PromptError
from vlm_lens.families.base import Architecture
from vlm_lens.families.parts.decoders import Decoder
from vlm_lens.families.parts.projected import Picture, ProjectedFamily
from vlm_lens.families.parts.shuffled_tiles import Frame, tiles_and_whole
from vlm_lens.points.sites import CellsView
from vlm_lens.tokens import tokenizer_of


class AyaVisionFamily(ProjectedFamily):
    """`AyaVisionForConditionalGeneration`.

    The tokens that open and close a picture and that name its tiles belong to the picture.
    """

    name = "aya-vision"
    model_types = ("aya_vision",)
    merges = True
    projector_views = (None, CellsView())

    def decoder(self, config: Any) -> Decoder:
        """A Cohere; with pictures its logits are not scaled."""
        return replace(super().decoder(config), logit_scale=1.0)

    def brackets(self, config: Any, processor: Any) -> tuple[Collection[int], Collection[int]]:
        """`<|START_OF_IMG|>` and `<|END_OF_IMG|>`."""
        if processor is None:
            return (), ()
        tokens = [processor.start_of_img_token, processor.end_of_img_token]
        opening, closing = tokenizer_of(processor).convert_tokens_to_ids(tokens)
        return (opening,), (closing,)

    def pictures(
        self,
        model: torch.nn.Module,
        arch: Architecture,
        inputs: Mapping[str, Tensor],
        processor: Any,
        sizes: Sequence[tuple[int, int]] | None,
    ) -> list[Picture]:
        """In the text stand the patches of each tile, then those of the whole picture."""
        pixels, patch = inputs["pixel_values"], arch.cfg.vision.patch_size
        shape = (pixels.shape[-1], pixels.shape[-2])
        frame = Frame(shape, (patch, patch), model.config.downsample_factor)
        rows = inputs["input_ids"].tolist()
        frames = [n for ids in rows for n in _frames(ids, arch.image_token_id, frame.n_tokens)]
        if sum(frames) != len(pixels) or (sizes and len(sizes) != len(frames)):
            raise PromptError(
                f"{len(pixels)} frames (tiles and whole pictures) of {frame.n_tokens} positions "
                f"need {len(pixels) * frame.n_tokens} image tokens; the prompt marks "
                f"{sum(frames)} frames of {len(frames)} pictures. Write one <image> for each "
                "picture."
            )
        pictures, first = [], 0
        for n, size in zip(frames, sizes or [None] * len(frames), strict=True):
            tiling = _tiling(n - 1, size, shape, getattr(processor, "image_processor", None))
            pictures.append(tiles_and_whole(first, n, frame, size, tiling))
            first += n
        return pictures


def _frames(ids: Sequence[int], image_token: int | None, per_frame: int) -> Iterator[int]:
    """How many frames each picture of a row has: a picture ends where the row's last one ends.

    Raises:
        PromptError: Image tokens that are no whole number of frames.
    """
    positions = [i for i, token in enumerate(ids) if token == image_token]
    if len(positions) % per_frame:
        raise PromptError(
            f"A frame (a tile or a whole picture) takes {per_frame} image tokens; this row of the "
            f"prompt holds {len(positions)}."
        )
    after = [
        ids[end + 1] if end + 1 < len(ids) else None
        for end in positions[per_frame - 1 :: per_frame]
    ]
    n = 0
    for token in after:
        n += 1
        if token == after[-1]:
            yield n
            n = 0


def _tiling(
    n_tiles: int, picture: tuple[int, int] | None, tile: tuple[int, int], image_processor: Any
) -> tuple[int, int] | None:
    """Rows and columns of tiles, as the processor chooses them; `None` where it is not known."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    if not n_tiles or picture is None or image_processor is None:
        return None
    cols, rows = get_optimal_tiled_canvas(
        (picture[1], picture[0]),
        (tile[1], tile[0]),
        image_processor.min_patches,
        image_processor.max_patches,
    )
    return (rows, cols) if rows * cols == n_tiles else None
