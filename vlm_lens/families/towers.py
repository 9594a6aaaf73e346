"""Vision towers that other models build on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vlm_lens.config import StackConfig
from vlm_lens.errors import ModelError
from vlm_lens.families.base import BlockParts

_VIT = BlockParts(
    ln1="layer_norm1", attn="self_attn", q="q_proj", k="k_proj", v="v_proj", o="out_proj",
    ln2="layer_norm2", mlp="mlp", mlp_pre="fc1", mlp_post="fc2",
)  # fmt: skip


@dataclass(frozen=True)
class Tower:
    """Where a vision tower keeps its parts, relative to the tower.

    Attributes:
        root: Path from the tower to the module that holds the parts.
        parts: The names within a block.
        n_class_tokens: Positions before the first patch.
        size: Its sizes.
    """

    root: str
    parts: BlockParts
    n_class_tokens: int
    size: StackConfig

    def path(self, tower: str, part: str) -> str:
        """The full path of a part of the tower at path `tower`."""
        return ".".join(p for p in (tower, self.root, part) if p)


_CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}


def describe_tower(tower: torch.nn.Module, config: Any) -> Tower:
    """The parts of a CLIP or SigLIP tower.

    Raises:
        ModelError: A tower of another type.
    """
    if config.model_type not in _CLASS_TOKENS:
        raise ModelError(
            f"The vision tower is of type {config.model_type!r}; known are "
            f"{', '.join(sorted(_CLASS_TOKENS))}."
        )
    size = StackConfig(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        n_key_value_heads=config.num_attention_heads,
        d_head=config.hidden_size // config.num_attention_heads,
        d_mlp=config.intermediate_size,
    )
    # transformers moved the tower's parts up by one module between 5.0 and 5.23
    root = "" if hasattr(tower, "encoder") else "vision_model"
    return Tower(root, _VIT, _CLASS_TOKENS[config.model_type], size)
