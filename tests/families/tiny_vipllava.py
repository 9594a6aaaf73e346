"""A tiny ViP-LLaVA."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaProcessor,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from families import tiny_parts

SIDE, PATCH, LAYERS = 16, 4, [-2, -3, 1]


def processor() -> LlavaProcessor:
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer=tiny_parts.tokenizer("<image>"),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def model(layers=LAYERS) -> VipLlavaForConditionalGeneration:
    tower = CLIPVisionConfig(
        image_size=SIDE, patch_size=PATCH, **tiny_parts.VISION | {"num_hidden_layers": 4}
    )
    config = VipLlavaConfig(
        vision_config=tower,
        text_config=LlamaConfig(vocab_size=128, **tiny_parts.TEXT),
        image_token_index=4,
        vision_feature_layer=layers,
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    return VipLlavaForConditionalGeneration(config)


def save(folder: Path) -> Path:
    return tiny_parts.save(model(), processor(), folder)
