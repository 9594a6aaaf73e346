"""A tiny random Qwen3-VL with experts, with Qwen3-VL's processor."""

from __future__ import annotations

from pathlib import Path

import tiny
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration, Qwen3VLProcessor

from families.tiny_qwen2_vl import TEXT, TOKENS, VISION, processor
from families.tiny_qwen3_vl import ROPE

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def build() -> Qwen3VLMoeForConditionalGeneration:
    tower = {"depth": 3, "hidden_size": 24, "intermediate_size": 36, "out_hidden_size": 32,
             "deepstack_visual_indexes": [0], "num_position_embeddings": 16}  # fmt: skip
    config = Qwen3VLMoeConfig(
        text_config=TEXT | EXPERTS | {"head_dim": 8, "rope_parameters": ROPE},
        vision_config=VISION | tower,
        **TOKENS,
    )
    return tiny.randomize(Qwen3VLMoeForConditionalGeneration(config))


def save(folder: Path) -> Path:
    build().save_pretrained(folder)
    processor(Qwen3VLProcessor).save_pretrained(folder)
    return folder
