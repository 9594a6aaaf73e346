"""Qwen3.5: Qwen3-VL's tower without DeepStack; linear attention in most text blocks."""

from __future__ import annotations

from typing import Any

from vlm_lens.families.qwen3_vl import Qwen3VLFamily
from vlm_lens.points.point import Point


class Qwen3_5Family(Qwen3VLFamily):  # noqa: N801
    """`Qwen3_5ForConditionalGeneration`, and that with a mixture of experts."""

    name = "qwen3_5"
    model_types = ("qwen3_5", "qwen3_5_moe")
    residual_breaks = ""
    adds_between_blocks = False
    not_replayable = "its linear attention keeps a state, not keys and values"

    def more_points(self, d_model: int, config: Any) -> list[Point]:
        """None."""
        return []
