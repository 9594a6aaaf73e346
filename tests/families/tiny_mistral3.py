"""A tiny Mistral 3, and a tiny LLaVA with the same Pixtral tower."""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
)
from transformers.models.pixtral import image_processing_pil_pixtral
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.utils import is_torchvision_available

from families import tiny_parts
from vlm_lens import HookedVLM

PATCH, LONGEST = 4, 32


def processor_class() -> type:
    """The processor; its module wants torchvision for one function, which PIL has too."""
    name = "transformers.models.pixtral.image_processing_pixtral"
    if not is_torchvision_available():
        sys.modules[name] = image_processing_pil_pixtral
    try:
        from transformers.models.pixtral.processing_pixtral import PixtralProcessor
    finally:
        if not is_torchvision_available():
            del sys.modules[name]
    return PixtralProcessor


PixtralProcessor = processor_class()


def processor(merge: int):
    return PixtralProcessor(
        image_processor=PixtralImageProcessorPil(
            size={"longest_edge": LONGEST}, patch_size={"height": PATCH, "width": PATCH}
        ),
        tokenizer=tiny_parts.tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        patch_size=PATCH,
        spatial_merge_size=merge,
    )


def _parts() -> dict:
    # rotary embeddings in two dimensions want a multiple of four
    sizes = tiny_parts.VISION | {"hidden_size": 32, "num_attention_heads": 4, "head_dim": 8}
    return {
        "vision_config": PixtralVisionConfig(image_size=LONGEST, patch_size=PATCH, **sizes),
        "text_config": MistralConfig(vocab_size=128, sliding_window=None, **tiny_parts.TEXT),
        "image_token_index": 4,
        "vision_feature_layer": -1,
    }


def mistral3() -> Mistral3ForConditionalGeneration:
    return Mistral3ForConditionalGeneration(Mistral3Config(spatial_merge_size=2, **_parts()))


def llava() -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_feature_select_strategy="full", **_parts())
    )


def save(folder: Path) -> Path:
    return tiny_parts.save(mistral3(), processor(2), folder)


def save_llava(folder: Path) -> Path:
    return tiny_parts.save(llava(), processor(1), folder)


def load(folder: Path) -> HookedVLM:
    return HookedVLM.from_pretrained(folder, processor=PixtralProcessor.from_pretrained(folder))
