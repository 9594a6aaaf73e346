"""What one kind of model adds to the common training: architecture, processor, prompt form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedTokenizerFast

from vlm_lens.zoo.train.configs import Shape
from vlm_lens.zoo.train.curriculum import Stage

__all__ = ["Organism"]


class Organism(ABC):
    """A vision-language model and the language model it is made from.

    Attributes:
        name: The vision-language model's name.
        language_name: The language model's.
        stages: The curriculum of both.
        seed: The seed that the shipped weights were trained with. Language models of two organisms
            have different ones: with one seed they would share their initial embeddings.
        special_tokens: Special tokens beyond `<unk>`, `<s>`, `</s>` and `<pad>`.
        texts: Pieces of its prompt form whose words are to be single tokens.
        seeing: Prefixes of the names of parameters that see.
        default_shape: The sizes of the shipped models.

    Args:
        shape: The sizes; those of the shipped models by default.
    """

    name: ClassVar[str]
    language_name: ClassVar[str]
    stages: ClassVar[tuple[Stage, ...]]
    seed: ClassVar[int] = 0
    special_tokens: ClassVar[tuple[str, ...]] = ("<image>",)
    texts: ClassVar[tuple[str, ...]] = ()
    seeing: ClassVar[tuple[str, ...]]
    default_shape: ClassVar[Shape] = Shape()

    def __init__(self, shape: Shape | None = None) -> None:
        self.shape = shape or self.default_shape

    @abstractmethod
    def language_model(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> nn.Module:
        """Build the language model with random weights."""

    @abstractmethod
    def model(
        self,
        tokenizer: PreTrainedTokenizerFast,
        language_model: nn.Module | None,
        seed: int,
    ) -> nn.Module:
        """Build the vision-language model on a language model's weights."""

    @abstractmethod
    def processor(self, tokenizer: PreTrainedTokenizerFast) -> Any:
        """Build the real processor of the vision-language model."""

    @abstractmethod
    def pixels(self, processor: Any, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return what the processor makes of pictures, `[picture, 3, height, width]`."""

    def image_inputs(self, pixels: torch.Tensor, rows: int) -> dict[str, torch.Tensor]:
        """Return the model's inputs for the pictures of `rows` prompts with as many each."""
        return {"pixel_values": pixels}

    def picture_features(self, model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the language model gets of each picture, `[picture, token, width]`."""
        inputs = self.image_inputs(pixels, len(pixels))
        return torch.stack(list(model.get_image_features(**inputs).pooler_output))

    def start(self, tokenizer: PreTrainedTokenizerFast, modality: str) -> list[int]:
        """Return the tokens before a prompt of the vision-language model."""
        return [tokenizer.bos_token_id]

    @abstractmethod
    def picture(self, tokenizer: PreTrainedTokenizerFast, number: int) -> list[int]:
        """Return the tokens of the prompt's picture of that number, from 0 on."""

    def finish(self, folder: Path) -> None:  # noqa: B027  most folders are done as they are saved
        """Add to the saved folder what a checkpoint of this kind has beyond transformers' own."""
