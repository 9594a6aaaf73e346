"""LLaVA: a CLIP, SigLIP or Pixtral tower, an MLP projector, a decoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_lens.families.base import Architecture
from vlm_lens.families.parts.pixels import (
    chain,
    covered,
    identity_map,
    resize_and_crop_map,
    square_map,
)
from vlm_lens.families.parts.pixtral_pictures import end_of_image, packed_pictures
from vlm_lens.families.parts.pixtral_processor import load_pixtral_processor
from vlm_lens.families.parts.projected import Picture, ProjectedFamily, one_frame
from vlm_lens.layout.geometry import PixelMap


class LlavaFamily(ProjectedFamily):
    """`LlavaForConditionalGeneration`."""

    name = "llava"
    model_types: tuple[str, ...] = ("llava",)

    def dropped(self, config: Any) -> int:
        """How many of the tower's first positions do not enter the projector."""
        return 1 if config.vision_feature_select_strategy == "default" else 0

    def packs_pictures(self, config: Any) -> bool:
        """A Pixtral tower does."""
        return config.vision_config.model_type == "pixtral"

    def load_processor(self, config: Any, where: str, **hub: Any) -> Any:
        """Pixtral's, which transformers loads with torchvision only."""
        return load_pixtral_processor(config, where, **hub)

    def brackets(self, config: Any, processor: Any) -> tuple[Collection[int], Collection[int]]:
        """None but after the pictures of a Pixtral tower."""
        return end_of_image(processor)

    def pictures(
        self,
        model: torch.nn.Module,
        arch: Architecture,
        inputs: Mapping[str, Tensor],
        processor: Any,
        sizes: Sequence[tuple[int, int]] | None,
    ) -> list[Picture]:
        """Patches stand in the text row by row."""
        if model.config.vision_config.model_type == "pixtral":
            return packed_pictures(inputs, arch.cfg.vision.patch_size, sizes)
        height, width = inputs["pixel_values"].shape[-2:]
        patch, n_class = arch.cfg.vision.patch_size, arch.cfg.vision.n_class_tokens
        rows, cols = height // patch, width // patch
        pictures = []
        for number in range(self.count_images(inputs)):
            pixels = identity_map((width, height))
            if sizes is not None and processor is not None:
                pixels = _map(processor.image_processor, sizes[number], (width, height))
            pictures.append(
                one_frame(
                    number,
                    rows,
                    cols,
                    covered(pixels, rows, cols, patch),
                    n_class_tokens=n_class,
                    dropped=self.dropped(model.config),
                )
            )
        return pictures


def _map(image_processor: Any, picture: tuple[int, int], frame: tuple[int, int]) -> PixelMap:
    if getattr(image_processor, "do_pad", False):  # LLaVA's own processor pads to a square first
        square = square_map(picture)
        return chain(square, resize_and_crop_map(image_processor, square.frame, frame))
    return resize_and_crop_map(image_processor, picture, frame)
