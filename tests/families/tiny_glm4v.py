"""A tiny random GLM-4V with its own processor."""

from __future__ import annotations

from pathlib import Path

import tiny
from transformers import Glm4vConfig, Glm4vForConditionalGeneration, Glm4vProcessor
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

from families.tiny_qwen2_vl import PATCH, TEXT, VISION
from families.tiny_words import tokenizer
from vlm_lens.model.loading import without_video

SPECIAL = ("<|begin_of_image|>", "<|end_of_image|>", "<|image|>", "<|video|>",
           "<|begin_of_video|>", "<|end_of_video|>")  # fmt: skip


def processor() -> Glm4vProcessor:
    pictures = Glm4vImageProcessorPil(
        patch_size=PATCH, size={"shortest_edge": 2 * 64, "longest_edge": 2 * 64 * 24}
    )
    made = without_video(Glm4vProcessor)
    return made(image_processor=pictures, tokenizer=tokenizer(SPECIAL))


def build() -> Glm4vForConditionalGeneration:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0],
            "partial_rotary_factor": 0.5}  # fmt: skip
    tower = {"depth": 2, "hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 44,
             "image_size": 16}  # fmt: skip
    config = Glm4vConfig(
        text_config=TEXT | {"vocab_size": 266, "rope_parameters": rope},
        vision_config=VISION | tower,
        image_start_token_id=4,
        image_end_token_id=5,
        image_token_id=6,
        video_token_id=7,
        video_start_token_id=8,
        video_end_token_id=9,
        tie_word_embeddings=False,
    )
    return tiny.randomize(Glm4vForConditionalGeneration(config))


def save(folder: Path) -> Path:
    build().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
