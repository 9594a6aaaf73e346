"""A tiny random InternVL with its own processor."""

from __future__ import annotations

from pathlib import Path

import tiny
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from families import texts
from families.tiny_words import tokenizer
from vlm_lens.model.loading import without_video

PATCH, SIDE = 4, 16
CELLS = SIDE // PATCH // 2
TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def processor() -> InternVLProcessor:
    pictures = GotOcr2ImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, max_patches=6, crop_to_patches=True
    )
    words = tokenizer(tuple(TOKENS.values()), extra_special_tokens=TOKENS)
    return without_video(InternVLProcessor)(pictures, words, image_seq_length=CELLS**2)


TEXT = {"vocab_size": 270, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip


def build(text: str = "qwen2", **vision) -> InternVLForConditionalGeneration:
    config = InternVLConfig(
        text_config={"model_type": text, **texts.options(text), **TEXT},
        vision_config=InternVLVisionConfig(
            **{
                "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 3,
                "num_attention_heads": 3, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH],
                "use_qk_norm": True, "norm_type": "rms_norm",
            } | vision
        ),
        image_token_id=6,
        image_seq_length=CELLS**2,
        tie_word_embeddings=False,
    )  # fmt: skip
    return tiny.randomize(InternVLForConditionalGeneration(config))


def save(folder: Path, text: str = "qwen2", **vision) -> Path:
    build(text, **vision).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
