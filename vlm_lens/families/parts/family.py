"""What a family says of its models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlm_lens.errors import PromptError
from vlm_lens.families.parts.architecture import Architecture
from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.picture import Brackets, Picture, place_pictures
from vlm_lens.families.parts.videos import video_layouts
from vlm_lens.layout.pictures import ImageLayout, VideoLayout
from vlm_lens.tokens import tokenizer_of


class Family(ABC):
    """An architecture family: knows where its models keep things, and nothing of experiments.

    Attributes:
        name: Its name.
        model_types: The values of Hugging Face's `config.model_type` that it describes.
        takes_images: Whether its models read pictures.
        pictures_by_text: Whether its processor wants one list of pictures a text.
        residual_breaks: Why what leaves a block is not what enters the next one, where so.
        tower_breaks: The same of the tower's blocks.
        not_replayable: Why variants of a run must be computed from the beginning, where so.
        not_continued: Why tokens after the first cannot be generated from a cache, where so.
        adds_between_blocks: Whether its model adds to the residual stream, between blocks, what
            does not depend on the text.
        adds_positions: Whether its language model adds positions to its input before its first
            block.
        not_separable: Why what pictures become cannot be computed for some of them alone, where so.
    """

    name: str
    model_types: tuple[str, ...]
    takes_images: bool = False
    pictures_by_text: bool = False
    residual_breaks: str = ""
    tower_breaks: str = ""
    not_replayable: str = ""
    not_continued: str = ""
    adds_between_blocks: bool = False
    adds_positions: bool = False
    not_separable: str = "its family does not say how the tensors of pictures are taken apart"

    @abstractmethod
    def architecture(self, model: torch.nn.Module) -> Architecture:
        """The parts of a loaded model."""

    def pictures(self, batch: PictureBatch) -> list[Picture]:
        """The pictures of a batch that holds some, in reading order.

        Raises:
            PromptError: The processor's tensors do not say what belongs to which picture.
        """
        raise NotImplementedError(f"{self.name} takes pictures and does not say where they stand.")

    def brackets(self, batch: PictureBatch) -> Brackets:
        """Tokens that open a picture in the text, and tokens that close it, if any."""
        return (), ()

    def image_layouts(self, batch: PictureBatch) -> list[list[ImageLayout]]:
        """Where the pictures stand, for each row of a batch.

        Raises:
            PromptError: Image tokens and pictures do not match.
        """
        if not self.takes_images:
            return [[] for _ in batch.ids]
        if not self.count_images(batch.inputs):
            return place_pictures(batch, [])
        return place_pictures(batch, self.pictures(batch), self.brackets(batch))

    def video_layouts(self, batch: PictureBatch) -> list[list[VideoLayout]]:
        """Where the videos stand, for each row of a batch.

        Raises:
            PromptError: Video tokens and videos do not match.
        """
        return video_layouts(batch) if self.takes_images else [[] for _ in batch.ids]

    def video_placeholder(self, processor: Any) -> str:
        """The text by which this family's processor marks a video's place."""
        return str(processor.video_token)

    def placeholder(self, processor: Any) -> str:
        """The text by which this family's processor marks a picture's place."""
        if self.takes_images:
            return processor.image_token
        raise PromptError(f"{self.name} is a language model without vision: it takes no pictures.")

    def tokenize(self, processor: Any, texts: list[str], **options: Any) -> Mapping[str, Any]:
        """The tokens of texts without any picture."""
        return tokenizer_of(processor)(texts, **options)

    def process(
        self, processor: Any, texts: list[str], pictures: list[list[Image.Image]], **options: Any
    ) -> Mapping[str, Any]:
        """Calls the processor on texts, placeholders already written, and each text's pictures."""
        images = pictures if self.pictures_by_text else [p for row in pictures for p in row]
        return processor(text=texts, images=images or None, **options)

    def load_processor(self, config: Any, where: str, **hub: Any) -> Any:
        """A processor for checkpoints that transformers has none for; `None`: transformers' own."""
        return None

    def count_images(self, inputs: Mapping[str, Tensor]) -> int:
        """How many pictures, or frames of pictures, a processor's tensors hold."""
        pixels = inputs.get("pixel_values") if self.takes_images else None
        return 0 if pixels is None else len(pixels)

    def packs_pictures(self, config: Any) -> bool:
        """Whether the tower reads the pictures of a batch as one sequence, one after the other."""
        return False

    def select_pictures(
        self, tensors: Mapping[str, Tensor], pictures: Sequence[ImageLayout], numbers: Sequence[int]
    ) -> dict[str, Tensor] | None:
        """The tensors of some pictures of a batch, as the model's `get_image_features` takes them.

        Args:
            tensors: Those of the batch.
            pictures: All its pictures.
            numbers: Which are wanted, in order; one may be wanted more than once.

        Returns:
            Their tensors; `None` where these cannot be taken apart. A family that never can says
            so in `not_separable`.
        """
        return None
