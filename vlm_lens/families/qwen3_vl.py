"""Qwen3-VL: as Qwen2-VL, and features of earlier tower blocks are added within the text model."""

from __future__ import annotations

from typing import Any

from vlm_lens.families.parts.patch_merging import TOWER, PatchMergingFamily
from vlm_lens.families.parts.stack import BlockParts, in_one_row
from vlm_lens.points.point import Point
from vlm_lens.points.sites import OutputSite


class Qwen3VLFamily(PatchMergingFamily):
    """`Qwen3VLForConditionalGeneration`, and that with a mixture of experts."""

    name = "qwen3_vl"
    model_types: tuple[str, ...] = ("qwen3_vl", "qwen3_vl_moe")
    residual_breaks = (
        "DeepStack adds picture features between the first blocks, at image positions "
        "(projector.deepstack.*.hook_out)"
    )
    adds_between_blocks = True
    tower_parts = BlockParts(
        ln1="norm1", attn="attn", q=None, k=None, v=None, o="proj", ln2="norm2", mlp="mlp",
        mlp_pre="linear_fc1", mlp_post="linear_fc2",
    )  # fmt: skip

    def tower_width(self, config: Any) -> tuple[int, int]:
        """As the config names them."""
        return config.hidden_size, config.intermediate_size

    def more_points(self, d_model: int, config: Any) -> list[Point]:
        """What each of DeepStack's mergers gives to the text model."""
        return [
            Point(
                f"projector.deepstack.{i}.hook_out",
                ("image", "pos", "d_model"),
                (1, None, d_model),
                f"Features of tower block {block}, added after text block {i}",
                in_one_row(OutputSite(f"{TOWER}.deepstack_merger_list.{i}")),
                "projector",
            )
            for i, block in enumerate(config.deepstack_visual_indexes)
        ]
