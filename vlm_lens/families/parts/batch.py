"""What a family is asked: the pictures of a batch of prompts, as the processor made them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vlm_lens.families.parts.architecture import Architecture
from vlm_lens.families.parts.pixels import (
    Size,
    identity_map,
    resize_and_crop_map,
    stretch_map,
)
from vlm_lens.layout.geometry import PixelMap
from vlm_lens.points.config import VisionConfig

HowResized = Callable[[Any, Size, Size], PixelMap]


@dataclass(frozen=True)
class GivenVideo:
    """What is known of a video as it was given.

    Attributes:
        size: Width and height of its frames.
        n_frames: How many it has; `None` where it was given as a file.
        fps: How many frames a second takes.
    """

    size: Size | None = None
    n_frames: int | None = None
    fps: float | None = None


@dataclass(frozen=True, eq=False)
class PictureBatch:
    """The pictures of a batch of prompts.

    Attributes:
        model: The model.
        arch: Its parts.
        inputs: The processor's tensors.
        processor: The processor, for its resize and crop; without it, and without sizes, pixels are
            those of the frame that the model sees.
        sizes: Width and height of each picture of the batch, as given.
        videos: Each video of the batch, as given, where known.
    """

    model: torch.nn.Module
    arch: Architecture
    inputs: Mapping[str, Tensor]
    processor: Any = None
    sizes: Sequence[Size] | None = None
    videos: Sequence[GivenVideo] = ()

    @property
    def config(self) -> Any:
        """The model's config."""
        return self.model.config

    @property
    def vision(self) -> VisionConfig:
        """The sizes of the tower."""
        vision = self.arch.cfg.vision
        assert vision is not None, "only families with a tower ask for it"
        return vision

    @property
    def image_processor(self) -> Any:
        """The processor's part for pictures, if known."""
        return getattr(self.processor, "image_processor", None)

    @cached_property
    def ids(self) -> list[list[int]]:
        """The tokens of each row, among them those that stand for pictures."""
        return self.inputs.get("input_ids", self.inputs[self.arch.ids]).tolist()

    @cached_property
    def places(self) -> list[list[int]]:
        """The positions of image tokens in each row; by a mask, where pictures come with one."""
        mask = self.inputs.get("image_embeds_position_mask")
        if mask is not None:
            return [row.nonzero().flatten().tolist() for row in mask]
        token = self.arch.image_token_id
        return [[i for i, t in enumerate(row) if t == token] for row in self.ids]

    @property
    def frame(self) -> Size:
        """Width and height of the frames, where all have one size."""
        height, width = self.inputs["pixel_values"].shape[-2:]
        return width, height

    def size(self, number: int) -> Size | None:
        """Width and height of one picture as given, if known."""
        return None if self.sizes is None else self.sizes[number]

    def pixels(self, number: int, frame: Size, how: HowResized = resize_and_crop_map) -> PixelMap:
        """How a picture became its frame; the identity where that is not known.

        Args:
            number: Its number in the batch.
            frame: Width and height of the frame.
            how: What the image processor does: from it and both sizes to a map.
        """
        if self.sizes is None or self.processor is None:
            return identity_map(frame)
        return how(self.image_processor, self.sizes[number], frame)

    def stretched(self, number: int, frame: Size) -> PixelMap:
        """The map of a resize to exactly the frame; the identity where the size is not known."""
        return identity_map(frame) if self.sizes is None else stretch_map(self.sizes[number], frame)
