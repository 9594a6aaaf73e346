"""A tiny random Qwen2-VL with its own processor."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import tiny
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from families.tiny_words import tokenizer
from vlm_lens.model.loading import without_video

PATCH = 4
SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEXT = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
    "pad_token_id": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {"num_heads": 3, "patch_size": PATCH, "temporal_patch_size": 2, "spatial_merge_size": 2}
TOKENS = {
    "vision_start_token_id": 4,
    "vision_end_token_id": 5,
    "image_token_id": 6,
    "video_token_id": 7,
    "tie_word_embeddings": False,
}


def processor(cls: type = Qwen2VLProcessor, **options: Any) -> Any:
    """The processor; without torchvision it has no part for videos."""
    pictures = Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=2, size={"shortest_edge": 8 * 8, "longest_edge": 8 * 8 * 24}
    )
    if importlib.util.find_spec("torchvision"):
        from transformers import Qwen2VLVideoProcessor

        options["video_processor"] = Qwen2VLVideoProcessor(patch_size=PATCH, merge_size=2)
        return cls(image_processor=pictures, tokenizer=tokenizer(SPECIAL), **options)
    return without_video(cls)(image_processor=pictures, tokenizer=tokenizer(SPECIAL), **options)


def build() -> Qwen2VLForConditionalGeneration:
    config = Qwen2VLConfig(
        text_config=dict(TEXT),
        vision_config=VISION | {"depth": 2, "embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2},
        **TOKENS,
    )
    return tiny.randomize(Qwen2VLForConditionalGeneration(config))


def save(folder: Path) -> Path:
    build().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
