"""A tiny Gemma 3."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Gemma3TextConfig,
    SiglipVisionConfig,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from families import tiny_parts

SIDE, PATCH, TOKENS = 32, 4, 16


def processor() -> Gemma3Processor:
    tokens = tiny_parts.tokenizer(
        "<boi>", "<img>", "<eoi>", boi_token="<boi>", image_token="<img>", eoi_token="<eoi>"
    )
    pictures = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return Gemma3Processor(image_processor=pictures, tokenizer=tokens, image_seq_length=TOKENS)


def model(**text) -> Gemma3ForConditionalGeneration:
    decoder = {
        "vocab_size": 128, "sliding_window": 6, "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(
            image_size=SIDE, patch_size=PATCH, vision_use_head=False, **tiny_parts.VISION
        ),
        text_config=Gemma3TextConfig(**tiny_parts.TEXT | decoder | text),
        mm_tokens_per_image=TOKENS,
        boi_token_index=4,
        image_token_index=5,
        eoi_token_index=6,
    )
    return Gemma3ForConditionalGeneration(config)


def save(folder: Path) -> Path:
    return tiny_parts.save(model(), processor(), folder)
