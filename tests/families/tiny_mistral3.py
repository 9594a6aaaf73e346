"""A tiny Mistral 3, and a tiny LLaVA with the same Pixtral tower."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
)
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from families import tiny_parts
from vlm_lens import HookedVLM
from vlm_lens.families.parts.pixtral_processor import pixtral_processor_class

PATCH, LONGEST = 4, 32


PixtralProcessor = pixtral_processor_class()


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
    return HookedVLM.from_pretrained(folder)
