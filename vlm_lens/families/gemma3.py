"""Gemma 3: a SigLIP tower, patches averaged in squares, pictures that see themselves both ways."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlm_lens.errors import PromptError
from vlm_lens.families.base import Architecture
from vlm_lens.families.parts.decoders import Decoder
from vlm_lens.families.parts.pixels import covered, identity_map, resize_and_crop_map
from vlm_lens.families.parts.projected import Picture, ProjectedFamily, one_frame


class Gemma3Family(ProjectedFamily):
    """`Gemma3ForConditionalGeneration`.

    A position of the text covers a square of patches. Crops made by pan and scan stand in the text
    as pictures of their own.
    """

    name = "gemma3"
    model_types = ("gemma3",)
    reads_normed = True
    merges = True
    projector_input = "vision_outputs"

    def layers_read(self, config: Any) -> list[int]:
        """The last one, normed."""
        return [config.vision_config.num_hidden_layers]

    def decoder(self, config: Any) -> Decoder:
        """A Gemma 3; with pictures its logits have no soft cap."""
        return replace(super().decoder(config), logit_softcap=None)

    def placeholder(self, processor: Any) -> str:
        """The token that opens a picture."""
        return processor.boi_token

    def process(
        self, processor: Any, texts: list[str], pictures: list[list[Image.Image]], **options: Any
    ) -> Mapping[str, Any]:
        """Pictures are given text by text."""
        return processor(text=texts, images=pictures, **options)

    def brackets(self, config: Any, processor: Any) -> tuple[Collection[int], Collection[int]]:
        """`<start_of_image>` and `<end_of_image>`."""
        return (config.boi_token_id,), (config.eoi_token_id,)

    def pictures(
        self,
        model: torch.nn.Module,
        arch: Architecture,
        inputs: Mapping[str, Tensor],
        processor: Any,
        sizes: Sequence[tuple[int, int]] | None,
    ) -> list[Picture]:
        """Every picture is resized to one frame, and squares of patches are averaged."""
        height, width = inputs["pixel_values"].shape[-2:]
        patch, n_frames = arch.cfg.vision.patch_size, self.count_images(inputs)
        side = model.config.vision_config.image_size // patch
        kernel = side // int(model.config.mm_tokens_per_image**0.5)
        merged = (side // kernel, side // kernel)
        if sizes is not None and len(sizes) != n_frames:
            raise PromptError(
                f"The processor made {n_frames} frames of {len(sizes)} pictures (pan and scan): "
                "crop them yourself and give the crops as pictures."
            )
        pictures = []
        for number in range(n_frames):
            pixels = identity_map((width, height))
            if sizes is not None and processor is not None:
                pixels = resize_and_crop_map(
                    processor.image_processor, sizes[number], (width, height)
                )
            # pooling leaves over what does not fill a square
            seen, pooled = (covered(pixels, n, n, patch) for n in (side, merged[0] * kernel))
            pictures.append(one_frame(number, side, side, seen, merged=merged, after=pooled))
        return pictures
