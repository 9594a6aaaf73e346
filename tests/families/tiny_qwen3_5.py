"""A tiny random Qwen3.5: one block of linear attention, one of gated attention."""

from __future__ import annotations

from pathlib import Path

import tiny
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration, Qwen3VLProcessor

from families.tiny_qwen2_vl import TEXT, TOKENS, VISION, processor

LINEAR = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1],
        "partial_rotary_factor": 1.0}  # fmt: skip


def build() -> Qwen3_5ForConditionalGeneration:
    tower = {"depth": 2, "hidden_size": 24, "intermediate_size": 36, "out_hidden_size": 32,
             "num_position_embeddings": 16, "deepstack_visual_indexes": []}  # fmt: skip
    config = Qwen3_5Config(
        text_config=TEXT | LINEAR | {"head_dim": 8, "rope_parameters": ROPE},
        vision_config=VISION | tower,
        **TOKENS,
    )
    return tiny.randomize(Qwen3_5ForConditionalGeneration(config))


def save(folder: Path) -> Path:
    build().save_pretrained(folder)
    processor(Qwen3VLProcessor).save_pretrained(folder)
    return folder
