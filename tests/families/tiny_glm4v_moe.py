"""A tiny random GLM-4.5V, with experts, with GLM-4V's processor."""

from __future__ import annotations

from pathlib import Path

import tiny
from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

from families.tiny_glm4v import processor
from families.tiny_qwen2_vl import TEXT, VISION

EXPERTS = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1,
    "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 8,
}  # fmt: skip


def build() -> Glm4vMoeForConditionalGeneration:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0],
            "partial_rotary_factor": 0.5}  # fmt: skip
    tower = {"depth": 2, "hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 44,
             "image_size": 16}  # fmt: skip
    config = Glm4vMoeConfig(
        text_config=TEXT | EXPERTS | {"vocab_size": 266, "rope_parameters": rope},
        vision_config=VISION | tower,
        image_start_token_id=4,
        image_end_token_id=5,
        image_token_id=6,
        video_token_id=7,
        video_start_token_id=8,
        video_end_token_id=9,
        tie_word_embeddings=False,
    )
    model = tiny.randomize(Glm4vMoeForConditionalGeneration(config))
    for block in model.model.visual.blocks:  # so that what is painted stays in place
        block.attn.proj.weight.data *= 0.02
    return model


def save(folder: Path) -> Path:
    build().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
