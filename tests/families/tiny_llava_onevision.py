"""A tiny LLaVA-OneVision."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from families import tiny_parts
from vlm_lens.model.loading import without_video

# 3 patches of 5 pixels leave one pixel of a frame over, as 27 of 14 leave 6 of 384
SIDE, PATCH = 16, 5
PINPOINTS = [[h * SIDE, w * SIDE] for h in (1, 2, 3) for w in (1, 2, 3)]


def processor(most: int = 3) -> LlavaOnevisionProcessor:
    pictures = LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=PINPOINTS
    )
    return without_video(LlavaOnevisionProcessor)(
        image_processor=pictures,
        tokenizer=tiny_parts.tokenizer("<image>", "<video>"),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=f"anyres_max_{most}",
    )


def model(most: int = 3) -> LlavaOnevisionForConditionalGeneration:
    text = {k: v for k, v in tiny_parts.TEXT.items() if k != "head_dim"}
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            image_size=SIDE, patch_size=PATCH, vision_use_head=False, **tiny_parts.VISION
        ),
        text_config=Qwen2Config(vocab_size=128, **text),
        image_token_index=4,
        video_token_index=5,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=f"anyres_max_{most}",
    )
    return LlavaOnevisionForConditionalGeneration(config)


def save(folder: Path) -> Path:
    return tiny_parts.save(model(), processor(), folder)
