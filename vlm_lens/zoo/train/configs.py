"""Sizes, small enough to train on one core, and where the parts of a model are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerFast

__all__ = [
    "Shape",
    "decoder",
    "decoder_layers",
    "final_norm",
    "is_joined",
    "special_ids",
    "text_sizes",
]


@dataclass(frozen=True)
class Shape:
    """The sizes of a language model and of what sees for it.

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
        latents: Tokens of a picture after a perceiver resampler.
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
    latents: int = 8

    @property
    def patches(self) -> int:
        """Patches of one picture."""
        return (self.image_size // self.patch_size) ** 2


def text_sizes(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return the settings that the configurations of all language models share."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        **special_ids(tokenizer),
    }


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the ids of begin, end and padding."""
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def decoder(model: nn.Module) -> nn.Module:
    """Return the language model without its head, in either model."""
    inner = model.model
    for name in ("language_model", "text_model"):
        inner = getattr(inner, name, inner)
    return inner


def is_joined(model: nn.Module) -> bool:
    """Whether a model sees: its language model is a part of it."""
    return decoder(model) is not model.model


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the language model's blocks, in either model."""
    return decoder(model).layers


def final_norm(model: nn.Module) -> nn.Module:
    """Return the norm before the head, in either model."""
    inner = decoder(model)
    return inner.norm if hasattr(inner, "norm") else inner.final_layernorm
