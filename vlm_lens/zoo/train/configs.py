"""The architectures, small enough to train on one core and made of transformers' own classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

__all__ = ["Shape", "build_llama", "build_llava", "decoder_layers"]


@dataclass(frozen=True)
class Shape:
    """The sizes of the two models.

    Attributes:
        layers: Blocks of the language model.
        width: Width of its residual stream.
        heads: Its attention heads.
        mlp: Width of its feed-forward layers.
        vision_layers: Blocks of the tower; the last one is not read, as in LLaVA-1.5.
        vision_width: Width of the tower.
        vision_heads: Attention heads of the tower.
        vision_mlp: Width of the tower's feed-forward layers.
        image_size: Side of a picture in pixels.
        patch_size: Side of a patch in pixels.
    """

    layers: int = 8
    width: int = 96
    heads: int = 4
    mlp: int = 384
    vision_layers: int = 4
    vision_width: int = 96
    vision_heads: int = 4
    vision_mlp: int = 288
    image_size: int = 32
    patch_size: int = 8

    @property
    def image_tokens(self) -> int:
        """Tokens that one picture takes in a prompt."""
        return (self.image_size // self.patch_size) ** 2


def _text_config(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_llama(
    shape: Shape, tokenizer: PreTrainedTokenizerFast, seed: int = 0
) -> LlamaForCausalLM:
    """Build the language model with random weights."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(_text_config(shape, tokenizer))


def build_llava(
    shape: Shape,
    tokenizer: PreTrainedTokenizerFast,
    language_model: LlamaForCausalLM | None = None,
    seed: int = 0,
) -> LlavaForConditionalGeneration:
    """Build the vision-language model: a fresh tower and projector on a language model.

    Args:
        shape: The sizes.
        tokenizer: The tokenizer of the language model.
        language_model: Whose weights to copy; random ones if none is given.
        seed: Seed of the fresh weights.

    Returns:
        The model.
    """
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=shape.vision_mlp,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_heads,
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        projection_dim=shape.width,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=_text_config(shape, tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=shape.image_tokens,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    if language_model is not None:
        model.model.language_model.load_state_dict(language_model.model.state_dict())
        model.tie_weights()
    return model


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the language model's blocks, in either model."""
    inner = model.model
    return inner.language_model.layers if hasattr(inner, "language_model") else inner.layers
