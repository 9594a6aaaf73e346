"""A tiny Aya Vision."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    Cohere2Config,
    SiglipVisionConfig,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from families import tiny_parts

SIDE, PATCH, MERGE = 16, 4, 2
SPECIAL = (
    "<image>", "<|IMG_PATCH|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>",
    "TILE", "TILE_GLOBAL",
)  # fmt: skip


def processor() -> AyaVisionProcessor:
    return AyaVisionProcessor(
        image_processor=GotOcr2ImageProcessorPil(
            size={"height": SIDE, "width": SIDE}, crop_to_patches=True, max_patches=6
        ),
        tokenizer=tiny_parts.tokenizer(*SPECIAL),
        patch_size=PATCH,
        img_size=SIDE,
        downsample_factor=MERGE,
    )


def model() -> AyaVisionForConditionalGeneration:
    text = {k: v for k, v in tiny_parts.TEXT.items() if k != "head_dim"}
    config = AyaVisionConfig(
        vision_config=SiglipVisionConfig(
            image_size=SIDE, patch_size=PATCH, vision_use_head=False, **tiny_parts.VISION
        ),
        text_config=Cohere2Config(vocab_size=128, sliding_window=8, **text),
        image_token_index=5,
        downsample_factor=MERGE,
    )
    return AyaVisionForConditionalGeneration(config)


def save(folder: Path) -> Path:
    return tiny_parts.save(model(), processor(), folder)
