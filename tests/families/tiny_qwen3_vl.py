"""A tiny random Qwen3-VL with its own processor."""

from __future__ import annotations

from pathlib import Path

import tiny
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from families.tiny_qwen2_vl import TEXT, TOKENS, VISION, processor

ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}


def build() -> Qwen3VLForConditionalGeneration:
    tower = {"depth": 3, "hidden_size": 24, "intermediate_size": 36, "out_hidden_size": 32,
             "deepstack_visual_indexes": [0], "num_position_embeddings": 16}  # fmt: skip
    config = Qwen3VLConfig(
        text_config=TEXT | {"head_dim": 8, "rope_parameters": ROPE},
        vision_config=VISION | tower,
        **TOKENS,
    )
    return tiny.randomize(Qwen3VLForConditionalGeneration(config))


def save(folder: Path) -> Path:
    build().save_pretrained(folder)
    processor(Qwen3VLProcessor).save_pretrained(folder)
    return folder
