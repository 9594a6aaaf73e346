"""A tiny PaliGemma."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from families import tiny_parts

SIDE, PATCH = 32, 8


def processor() -> PaliGemmaProcessor:
    pictures = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    pictures.image_seq_length = (SIDE // PATCH) ** 2
    tokens = tiny_parts.tokenizer("<image>", bos=False, image_token="<image>")
    return PaliGemmaProcessor(image_processor=pictures, tokenizer=tokens)


def model(text=GemmaConfig, **changes) -> PaliGemmaForConditionalGeneration:
    # the processor adds its own 1152 tokens for places and segments
    decoder = text(vocab_size=1400, **(tiny_parts.TEXT | changes))
    tower = SiglipVisionConfig(
        image_size=SIDE, patch_size=PATCH, projection_dim=32, vision_use_head=False,
        **tiny_parts.VISION,
    )  # fmt: skip
    config = PaliGemmaConfig(
        vision_config=tower, text_config=decoder, image_token_index=4, projection_dim=32,
        hidden_size=32,
    )  # fmt: skip
    return PaliGemmaForConditionalGeneration(config)


def save(folder: Path) -> Path:
    return tiny_parts.save(model(), processor(), folder)
