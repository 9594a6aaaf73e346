"""LLaVA-NeXT: a LLaVA that reads a view of the whole picture and tiles of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_lens.errors import PromptError
from vlm_lens.families.base import Architecture
from vlm_lens.families.parts.anyres_tiles import tiled_picture
from vlm_lens.families.parts.projected import Picture, ProjectedFamily


class LlavaNextFamily(ProjectedFamily):
    """`LlavaNextForConditionalGeneration`."""

    name = "llava-next"
    model_types = ("llava_next",)

    def pictures(
        self,
        model: torch.nn.Module,
        arch: Architecture,
        inputs: Mapping[str, Tensor],
        processor: Any,
        sizes: Sequence[tuple[int, int]] | None,
    ) -> list[Picture]:
        """In the text stand the whole picture's patches, then the mosaic of the tiles'."""
        config, vision = model.config, arch.cfg.vision
        pictures, first = [], 0
        for height, width in sizes_as_given(inputs):
            picture = tiled_picture(
                first,
                (width, height),
                pinpoints=config.image_grid_pinpoints,
                tile=vision.image_size,
                patch=vision.patch_size,
                n_class_tokens=vision.n_class_tokens,
                dropped=1 if config.vision_feature_select_strategy == "default" else 0,
                image_processor=getattr(processor, "image_processor", None),
            )
            pictures.append(picture)
            first += len(picture.vision.sequences)
        return pictures


def sizes_as_given(inputs: Mapping[str, Tensor]) -> list[list[int]]:
    """Height and width of each picture, which these processors return.

    Raises:
        PromptError: They are missing.
    """
    if inputs.get("image_sizes") is None:
        raise PromptError(
            "pixel_values came without image_sizes, which say how the tiles make up a picture: "
            "pass all that the processor returned."
        )
    return inputs["image_sizes"].tolist()
