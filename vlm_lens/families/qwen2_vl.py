"""Qwen2-VL: a tower with rotary positions, two by two patches merged, a Qwen2 text model."""

from __future__ import annotations

from typing import Any

from vlm_lens.families.parts.patch_merging import PatchMergingFamily
from vlm_lens.families.parts.stack import BlockParts


class Qwen2VLFamily(PatchMergingFamily):
    """`Qwen2VLForConditionalGeneration`."""

    name = "qwen2_vl"
    model_types = ("qwen2_vl",)
    tower_parts = BlockParts(
        ln1="norm1", attn="attn", q=None, k=None, v=None, o="proj", ln2="norm2", mlp="mlp",
        mlp_pre="fc1", mlp_post="fc2",
    )  # fmt: skip

    def tower_width(self, config: Any) -> tuple[int, int]:
        """Its `hidden_size` is the text model's."""
        return config.embed_dim, int(config.embed_dim * config.mlp_ratio)
