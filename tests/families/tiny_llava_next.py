"""A tiny LLaVA-NeXT."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
)
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from families import texts, tiny_parts

PATCH = 4
OWN = {"vocab_size": 128, "sliding_window": None}


def pinpoints(side: int) -> list[list[int]]:
    return [[h * side, w * side] for h, w in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]


def processor(side: int = 16) -> LlavaNextProcessor:
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_grid_pinpoints=pinpoints(side),
    )
    return LlavaNextProcessor(
        image_processor=pictures,
        tokenizer=tiny_parts.tokenizer("<image>"),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def model(side: int = 16, text: str = "mistral") -> LlavaNextForConditionalGeneration:
    tower = CLIPVisionConfig(
        image_size=side, patch_size=PATCH, **tiny_parts.VISION | {"num_hidden_layers": 3}
    )
    config = LlavaNextConfig(
        vision_config=tower,
        text_config=AutoConfig.for_model(text, **texts.options(text) | tiny_parts.TEXT | OWN),
        image_token_index=4,
        image_grid_pinpoints=pinpoints(side),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return LlavaNextForConditionalGeneration(config)


def with_side(side: int) -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    return tiny_parts.finish(model(side)), processor(side)


def save(folder: Path, text: str = "mistral") -> Path:
    return tiny_parts.save(model(text=text), processor(), folder)
