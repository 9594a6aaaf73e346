"""Mistral 3: a Pixtral tower, patches merged two by two, a Mistral."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_lens.families.base import Architecture
from vlm_lens.families.parts.pixtral_pictures import end_of_image, packed_pictures
from vlm_lens.families.parts.pixtral_processor import load_pixtral_processor
from vlm_lens.families.parts.projected import Picture, ProjectedFamily
from vlm_lens.points.sites import FlatView


class Mistral3Family(ProjectedFamily):
    """`Mistral3ForConditionalGeneration`.

    The projector takes and gives the patches of all pictures without an axis of rows.
    """

    name = "mistral3"
    model_types = ("mistral3",)
    merges = True
    projector_views = (FlatView(single=True), FlatView(single=True))

    def packs_pictures(self, config: Any) -> bool:
        """A Pixtral tower does."""
        return True

    def load_processor(self, config: Any, where: str, **hub: Any) -> Any:
        """Pixtral's, which transformers loads with torchvision only."""
        return load_pixtral_processor(config, where, **hub)

    def brackets(self, config: Any, processor: Any) -> tuple[Collection[int], Collection[int]]:
        """A picture ends with `[IMG_END]`."""
        return end_of_image(processor)

    def pictures(
        self,
        model: torch.nn.Module,
        arch: Architecture,
        inputs: Mapping[str, Tensor],
        processor: Any,
        sizes: Sequence[tuple[int, int]] | None,
    ) -> list[Picture]:
        """Every picture keeps its shape; a position of the text covers a square of patches."""
        merge = model.config.spatial_merge_size
        return packed_pictures(inputs, arch.cfg.vision.patch_size, sizes, merge)
