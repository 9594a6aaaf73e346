"""Gemma 3: a SigLIP tower, patches averaged in squares, pictures that see themselves both ways."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from vlm_lens.errors import PromptError
from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.decoders import Decoder
from vlm_lens.families.parts.picture import Brackets, Picture, one_frame
from vlm_lens.families.parts.pixels import covered
from vlm_lens.families.parts.projected import ProjectedFamily


class Gemma3Family(ProjectedFamily):
    """`Gemma3ForConditionalGeneration`.

    A position of the text covers a square of patches. Crops made by pan and scan stand in the text
    as pictures of their own.
    """

    name = "gemma3"
    model_types = ("gemma3",)
    reads_normed = True
    merges = True
    pictures_by_text = True
    projector_input = "vision_outputs"

    def decoder(self, model: torch.nn.Module) -> Decoder:
        """A Gemma 3; with pictures its logits have no soft cap."""
        return replace(super().decoder(model), logit_softcap=None)

    def placeholder(self, processor: Any) -> str:
        """The token that opens a picture."""
        return processor.boi_token

    def brackets(self, batch: PictureBatch) -> Brackets:
        """`<start_of_image>` and `<end_of_image>`."""
        return (batch.config.boi_token_id,), (batch.config.eoi_token_id,)

    def pictures(self, batch: PictureBatch) -> list[Picture]:
        """Every picture is resized to one frame, and squares of patches are averaged."""
        patch, n_frames = batch.vision.patch_size, self.count_images(batch.inputs)
        side = batch.config.vision_config.image_size // patch
        kernel = side // int(batch.config.mm_tokens_per_image**0.5)
        merged = (side // kernel, side // kernel)
        if batch.sizes is not None and len(batch.sizes) != n_frames:
            raise PromptError(
                f"The processor made {n_frames} frames of {len(batch.sizes)} pictures (pan and "
                "scan): crop them yourself and give the crops as pictures."
            )
        pictures = []
        for number in range(n_frames):
            pixels = batch.pixels(number, batch.frame)
            # pooling leaves over what does not fill a square
            seen, pooled = (covered(pixels, n, n, patch) for n in (side, merged[0] * kernel))
            pictures.append(one_frame(number, side, side, seen, merged=merged, after=pooled))
        return pictures
