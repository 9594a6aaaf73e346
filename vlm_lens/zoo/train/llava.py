"""`toy-vicuna` and `toy-llava`: late fusion through an MLP projector, as in LLaVA-1.5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlm_lens.zoo.train.configs import special_ids, text_sizes
from vlm_lens.zoo.train.curriculum import LANGUAGE, SEEING, VISION_LANGUAGE
from vlm_lens.zoo.train.organism import Organism

__all__ = ["Llava"]


class Llava(Organism):
    """A CLIP tower, of which the last block is not read, and a Llama."""

    name = "toy-llava"
    language_name = "toy-vicuna"
    stages = (*LANGUAGE, *SEEING, VISION_LANGUAGE)
    seeing = ("model.vision_tower", "model.multi_modal_projector")

    def language_model(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
        """Build the Llama."""
        torch.manual_seed(seed)
        return LlamaForCausalLM(self._text_config(tokenizer))

    def model(
        self,
        tokenizer: PreTrainedTokenizerFast,
        language_model: nn.Module | None,
        seed: int,
    ) -> LlavaForConditionalGeneration:
        """Build the LLaVA: a fresh tower and projector on the Llama."""
        vision = CLIPVisionConfig(
            hidden_size=self.shape.vision_width,
            intermediate_size=self.shape.vision_mlp,
            num_hidden_layers=self.shape.vision_layers,
            num_attention_heads=self.shape.vision_heads,
            image_size=self.shape.image_size,
            patch_size=self.shape.patch_size,
            projection_dim=self.shape.width,
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=self._text_config(tokenizer),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=self.shape.patches,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            tie_word_embeddings=True,
            **special_ids(tokenizer),
        )
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        if language_model is not None:
            model.model.language_model.load_state_dict(language_model.model.state_dict())
            model.tie_weights()
        return model

    def processor(self, tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
        """Build a processor that expands `<image>` to one token a patch."""
        images = CLIPImageProcessorPil(
            size={"shortest_edge": self.shape.image_size},
            crop_size={"height": self.shape.image_size, "width": self.shape.image_size},
        )
        return LlavaProcessor(
            image_processor=images,
            tokenizer=tokenizer,
            patch_size=self.shape.patch_size,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )

    def pixels(self, processor: Any, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return the pixels."""
        found = processor.image_processor(list(pictures), return_tensors="pt")
        return found["pixel_values"].float()

    def picture(self, tokenizer: PreTrainedTokenizerFast, number: int) -> list[int]:
        """One token a patch."""
        return [tokenizer.convert_tokens_to_ids("<image>")] * self.shape.patches

    def _text_config(self, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
        return LlamaConfig(
            **text_sizes(self.shape, tokenizer), num_key_value_heads=self.shape.heads
        )
