"""LLaVA: a CLIP, SigLIP or Pixtral tower, an MLP projector, a decoder."""

from __future__ import annotations

from typing import Any

from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.picture import Brackets, Picture, one_frame
from vlm_lens.families.parts.pixels import chain, covered, resize_and_crop_map, square_map
from vlm_lens.families.parts.pixtral_pictures import packed_pictures
from vlm_lens.families.parts.pixtral_processor import load_pixtral_processor
from vlm_lens.families.parts.projected import ProjectedFamily
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

    def brackets(self, batch: PictureBatch) -> Brackets:
        """None but `[IMG_END]` after a Pixtral tower's pictures; `[IMG_BREAK]` stands within."""
        token = getattr(batch.processor, "image_end_token_id", None)
        return (), () if token is None else (token,)

    def pictures(self, batch: PictureBatch) -> list[Picture]:
        """Patches stand in the text row by row."""
        if self.packs_pictures(batch.config):
            return packed_pictures(batch)
        patch, n_class = batch.vision.patch_size, batch.vision.n_class_tokens
        rows, cols = batch.frame[1] // patch, batch.frame[0] // patch
        pictures = []
        for number in range(self.count_images(batch.inputs)):
            pixels = covered(batch.pixels(number, batch.frame, _map), rows, cols, patch)
            dropped = self.dropped(batch.config)
            pictures.append(
                one_frame(number, rows, cols, pixels, n_class_tokens=n_class, dropped=dropped)
            )
        return pictures


def _map(image_processor: Any, picture: tuple[int, int], frame: tuple[int, int]) -> PixelMap:
    if getattr(image_processor, "do_pad", False):  # LLaVA's own processor pads to a square first
        square = square_map(picture)
        return chain(square, resize_and_crop_map(image_processor, square.frame, frame))
    return resize_and_crop_map(image_processor, picture, frame)
