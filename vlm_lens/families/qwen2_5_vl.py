"""Qwen2.5-VL: as Qwen2-VL, with attention within windows in most blocks of the tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlm_lens.families.parts.patch_merging import PatchMergingFamily
from vlm_lens.families.parts.stack import BlockParts


class Qwen2_5VLFamily(PatchMergingFamily):  # noqa: N801
    """`Qwen2_5_VLForConditionalGeneration`."""

    name = "qwen2_5_vl"
    model_types = ("qwen2_5_vl",)
    tower_parts = BlockParts(
        ln1="norm1", attn="attn", q=None, k=None, v=None, o="proj", ln2="norm2", mlp="mlp",
        mlp_pre="gate_proj", mlp_linear="up_proj", mlp_post="down_proj",
    )  # fmt: skip

    def tower_width(self, config: Any) -> tuple[int, int]:
        """As the config names them."""
        return config.hidden_size, config.intermediate_size

    def merged_order(self, config: Any, grids: Tensor) -> Tensor:
        """The tower reads window after window; the merger's output is sorted again."""
        from transformers.vision_utils import get_vision_window_index

        order, _ = get_vision_window_index(
            grids, config.spatial_merge_size, config.window_size, config.patch_size
        )
        return torch.argsort(order)
