"""A tiny random SmolVLM with its own processor."""

from __future__ import annotations

from pathlib import Path

import tiny
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMProcessor
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from families.tiny_idefics3 import CELLS, SCALE, SIZES, SPECIAL, TEXT, VISION
from families.tiny_words import tokenizer
from vlm_lens.model.loading import without_video

# The processor asks for num2words, which only its videos use.
processing_smolvlm.num2words = processing_smolvlm.num2words or str


def processor(split: bool = True) -> SmolVLMProcessor:
    pictures = SmolVLMImageProcessorPil(**SIZES, do_image_splitting=split)
    return without_video(SmolVLMProcessor)(pictures, tokenizer(SPECIAL), image_seq_len=CELLS**2)


def build() -> SmolVLMForConditionalGeneration:
    config = SmolVLMConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config=VISION,
        image_token_id=5,
        scale_factor=SCALE,
        tie_word_embeddings=True,
    )
    return tiny.randomize(SmolVLMForConditionalGeneration(config))


def save(folder: Path, *, split: bool = True) -> Path:
    build().save_pretrained(folder)
    processor(split).save_pretrained(folder)
    return folder
