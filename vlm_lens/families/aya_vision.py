"""Aya Vision: a SigLIP tower that reads tiles and the whole, a pixel shuffle, a Cohere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from vlm_lens.errors import PromptError
from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.decoders import Decoder
from vlm_lens.families.parts.picture import Brackets, Picture
from vlm_lens.families.parts.projected import ProjectedFamily
from vlm_lens.families.parts.shuffled_tiles import Frame, tiled_pictures
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

    def decoder(self, model: torch.nn.Module) -> Decoder:
        """A Cohere; with pictures its logits are not scaled."""
        return replace(super().decoder(model), logit_scale=1.0)

    def brackets(self, batch: PictureBatch) -> Brackets:
        """`<|START_OF_IMG|>` and `<|END_OF_IMG|>`."""
        if batch.processor is None:
            return (), ()
        tokens = [batch.processor.start_of_img_token, batch.processor.end_of_img_token]
        opening, closing = tokenizer_of(batch.processor).convert_tokens_to_ids(tokens)
        return (opening,), (closing,)

    def pictures(self, batch: PictureBatch) -> list[Picture]:
        """In the text stand the patches of each tile, then those of the whole picture."""
        patch, n_frames = batch.vision.patch_size, self.count_images(batch.inputs)
        frame = Frame(batch.frame, (patch, patch), batch.config.downsample_factor)
        rows = zip(batch.ids, batch.places, strict=True)
        frames = [n for ids, places in rows for n in _frames(ids, places, frame.n_tokens)]
        if sum(frames) != n_frames or (batch.sizes and len(batch.sizes) != len(frames)):
            raise PromptError(
                f"{n_frames} frames (tiles and whole pictures) of {frame.n_tokens} positions "
                f"need {n_frames * frame.n_tokens} image tokens; the prompt marks {sum(frames)} "
                f"frames of {len(frames)} pictures. Write one <image> for each picture."
            )
        tilings = [
            _tiling(n - 1, batch.size(i), batch.frame, batch.image_processor)
            for i, n in enumerate(frames)
        ]
        return tiled_pictures(batch, frame, frames, tilings)


def _frames(ids: Sequence[int], positions: Sequence[int], per_frame: int) -> Iterator[int]:
    """How many frames each picture of a row has: a picture ends where the row's last one ends.

    Raises:
        PromptError: Image tokens that are no whole number of frames.
    """
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
