"""Mistral 3: a LLaVA with a Pixtral tower whose patches are merged two by two, a Mistral."""

from __future__ import annotations

from vlm_lens.families.llava import LlavaFamily
from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.picture import Picture
from vlm_lens.families.parts.pixtral_pictures import packed_pictures
from vlm_lens.points.sites import FlatView


class Mistral3Family(LlavaFamily):
    """`Mistral3ForConditionalGeneration`.

    The projector takes and gives the patches of all pictures without an axis of rows.
    """

    name = "mistral3"
    model_types = ("mistral3",)
    merges = True
    projector_views = (FlatView(single=True), FlatView(single=True))

    def pictures(self, batch: PictureBatch) -> list[Picture]:
        """Every picture keeps its shape; a position of the text covers a square of patches."""
        return packed_pictures(batch, batch.config.spatial_merge_size)
