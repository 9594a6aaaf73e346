"""A tiny random Qwen2.5-VL with its own processor."""

from __future__ import annotations

from pathlib import Path

import tiny
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

from families.tiny_qwen2_vl import TEXT, TOKENS, VISION, processor


def build() -> Qwen2_5_VLForConditionalGeneration:
    tower = {"depth": 3, "hidden_size": 24, "intermediate_size": 36, "out_hidden_size": 32}
    config = Qwen2_5_VLConfig(
        text_config=dict(TEXT),
        vision_config=VISION | tower | {"window_size": 16, "fullatt_block_indexes": [1]},
        **TOKENS,
    )
    return tiny.randomize(Qwen2_5_VLForConditionalGeneration(config))


def save(folder: Path) -> Path:
    build().save_pretrained(folder)
    processor(Qwen2_5_VLProcessor).save_pretrained(folder)
    return folder
