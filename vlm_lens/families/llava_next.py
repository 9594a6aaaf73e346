"""LLaVA-NeXT: a LLaVA that reads a view of the whole picture and tiles of it."""

from __future__ import annotations

from typing import Any

from vlm_lens.errors import PromptError
from vlm_lens.families.parts.anyres_tiles import tiled_picture
from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.picture import Picture
from vlm_lens.families.parts.pixels import Size
from vlm_lens.families.parts.projected import ProjectedFamily


class LlavaNextFamily(ProjectedFamily):
    """`LlavaNextForConditionalGeneration`."""

    name = "llava-next"
    model_types = ("llava_next",)

    def pictures(self, batch: PictureBatch) -> list[Picture]:
        """In the text stand the whole picture's patches, then the mosaic of the tiles'."""
        pictures, first = [], 0
        for size in sizes_as_given(batch):
            pictures.append(tiled_picture(batch, first, size, dropped(batch.config)))
            first += len(pictures[-1].vision.sequences)
        return pictures


def dropped(config: Any) -> int:
    """How many of the tower's first positions do not enter the projector."""
    return 1 if config.vision_feature_select_strategy == "default" else 0


def sizes_as_given(batch: PictureBatch) -> list[Size]:
    """Width and height of each picture, which these processors return.

    Raises:
        PromptError: They are missing.
    """
    if batch.inputs.get("image_sizes") is None:
        raise PromptError(
            "pixel_values came without image_sizes, which say how the tiles make up a picture: "
            "pass all that the processor returned."
        )
    return [(width, height) for height, width in batch.inputs["image_sizes"].tolist()]
