"""What Idefics2, Idefics3 and SmolVLM share: their modules' names, and frames in lists by text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from vlm_lens.families.parts.projected import ProjectedFamily
from vlm_lens.families.parts.selection import by_rows
from vlm_lens.layout.pictures import ImageLayout


class IdeficsFamily(ProjectedFamily):
    """A family with `model.vision_model`, `model.connector` and `model.text_model`."""

    tower_path = "model.vision_model"
    projector_path = "model.connector"
    text_path = "model.text_model"
    projector_input = "image_hidden_states"
    reads_normed = True
    merges = True
    pictures_by_text = True

    def count_images(self, inputs: Mapping[str, Tensor]) -> int:
        """How many frames the tower reads."""
        pixels = inputs.get("pixel_values")
        return 0 if pixels is None else int(real_frames(pixels).sum())

    def select_pictures(
        self, tensors: Mapping[str, Tensor], pictures: Sequence[ImageLayout], numbers: Sequence[int]
    ) -> dict[str, Tensor] | None:
        """Their frames, padding left out, as if each were the only one of a text."""
        real = real_frames(tensors["pixel_values"])
        found = by_rows({k: v[real] for k, v in tensors.items()}, pictures, numbers)
        return None if found is None else {k: v.unsqueeze(1) for k, v in found.items()}


def real_frames(pixels: Tensor) -> Tensor:
    """Which frames `[batch, frame]` are no padding, by the models' own rule: not all zero."""
    return (pixels != 0).flatten(2).any(-1)
