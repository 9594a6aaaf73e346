"""`toy-persimmon` and `toy-fuyu`: early fusion, in the prompt form of Mantis-Fuyu.

There is no tower: one linear layer makes a token of each patch's pixels, and the language model
does all the seeing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import nn
from transformers import (
    FuyuConfig,
    FuyuForCausalLM,
    FuyuProcessor,
    PersimmonConfig,
    PersimmonForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil

from vlm_lens.zoo.train.configs import Shape, special_ids, text_sizes
from vlm_lens.zoo.train.curriculum import EARLY_FUSION, LANGUAGE
from vlm_lens.zoo.train.organism import Organism

__all__ = ["Fuyu"]

_PATCH, _NEWLINE, _OPEN, _CLOSE = "|SPEAKER|", "|NEWLINE|", "|IMAGE|", "|ENDOFIMAGE|"


class Fuyu(Organism):
    """Patches of pixels in a Persimmon, with Mantis's marks around each picture."""

    name = "toy-fuyu"
    language_name = "toy-persimmon"
    stages = (*LANGUAGE, *EARLY_FUSION)
    seed = 2
    special_tokens = ("|ENDOFTEXT|", _PATCH, _NEWLINE, _OPEN, _CLOSE)
    texts = ("image 0: 1: 2: 3: 4: 5: 6: 7: 8: 9:",)
    seeing = ("model.vision_embed_tokens",)
    # Larger patches, since every token of a picture goes through all blocks.
    default_shape = Shape(mlp=512, image_size=30, patch_size=10)

    def language_model(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> PersimmonForCausalLM:
        """Build the Persimmon."""
        torch.manual_seed(seed)
        return PersimmonForCausalLM(PersimmonConfig(**text_sizes(self.shape, tokenizer)))

    def model(
        self,
        tokenizer: PreTrainedTokenizerFast,
        language_model: nn.Module | None,
        seed: int,
    ) -> FuyuForCausalLM:
        """Build the Fuyu: a fresh linear layer on the Persimmon."""
        config = FuyuConfig(
            image_size=self.shape.image_size,
            patch_size=self.shape.patch_size,
            image_token_id=tokenizer.convert_tokens_to_ids(_PATCH),
            text_config=PersimmonConfig(**text_sizes(self.shape, tokenizer)),
            tie_word_embeddings=True,
            **special_ids(tokenizer),
        )
        torch.manual_seed(seed)
        model = FuyuForCausalLM(config)
        if language_model is not None:
            model.model.language_model.load_state_dict(language_model.model.state_dict())
            model.tie_weights()
        return model

    def processor(self, tokenizer: PreTrainedTokenizerFast) -> FuyuProcessor:
        """Build Fuyu's processor; prompts of several pictures are Mantis's."""
        side = {"height": self.shape.image_size, "width": self.shape.image_size}
        patch = {"height": self.shape.patch_size, "width": self.shape.patch_size}
        return FuyuProcessor(FuyuImageProcessorPil(size=side, patch_size=patch), tokenizer)

    def pixels(self, processor: Any, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return the pixels."""
        found = processor.image_processor(list(pictures), return_tensors="pt")["images"]
        return torch.stack([torch.as_tensor(one[0]) for one in found]).float()

    def image_inputs(self, pixels: torch.Tensor, rows: int) -> dict[str, torch.Tensor]:
        """Return the pixels of each patch, row by row."""
        side = self.shape.patch_size
        cut = rearrange(pixels, "b c (r h) (k w) -> b (r k) (h w c)", h=side, w=side)
        return {"pixel_values": cut}

    def start(self, tokenizer: PreTrainedTokenizerFast, modality: str) -> list[int]:
        """Mantis begins a text without pictures at its first word."""
        return [tokenizer.bos_token_id] if modality == "image" else []

    def picture(self, tokenizer: PreTrainedTokenizerFast, number: int) -> list[int]:
        """Return `image j: `, the patches by rows between two marks, and the next piece's `<s>`."""
        ids = tokenizer.convert_tokens_to_ids
        side = self.shape.image_size // self.shape.patch_size
        rows = [*[ids(_PATCH)] * side, ids(_NEWLINE)] * side
        label = tokenizer.encode(f"image {number}: ", add_special_tokens=False)
        return [*label, ids(_OPEN), *rows, ids(_CLOSE), tokenizer.bos_token_id]

    def finish(self, folder: Path) -> None:
        """Name Mantis's class, by which its prompt form is known; plain transformers reads past."""
        file = folder / "config.json"
        config = json.loads(file.read_text())
        if config["model_type"] == "fuyu":
            config["architectures"] = ["MFuyuForCausalLM"]
            file.write_text(json.dumps(config, indent=2) + "\n")
