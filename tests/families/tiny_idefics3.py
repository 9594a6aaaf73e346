"""A tiny random Idefics3 with its own processor."""

from __future__ import annotations

from pathlib import Path

import tiny
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from families.tiny_words import tokenizer

PATCH, SIDE, SCALE = 4, 16, 2
CELLS = SIDE // PATCH // SCALE
SPECIAL = (
    "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>",
    *(f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)),
)  # fmt: skip
TEXT = {
    "vocab_size": 279, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3,
    "image_size": SIDE, "patch_size": PATCH,
}  # fmt: skip
SIZES = {"size": {"longest_edge": 3 * SIDE}, "max_image_size": {"longest_edge": SIDE}}


def processor(split: bool = True) -> Idefics3Processor:
    pictures = Idefics3ImageProcessorPil(**SIZES, do_image_splitting=split)
    return Idefics3Processor(pictures, tokenizer(SPECIAL), image_seq_len=CELLS**2)


def build() -> Idefics3ForConditionalGeneration:
    config = Idefics3Config(
        text_config={"model_type": "llama", **TEXT},
        vision_config={**VISION, "model_type": "idefics3"},  # as checkpoints on the Hub write it
        image_token_id=5,
        scale_factor=SCALE,
        tie_word_embeddings=False,
    )
    return tiny.randomize(Idefics3ForConditionalGeneration(config))


def save(folder: Path, *, split: bool = True) -> Path:
    build().save_pretrained(folder)
    processor(split).save_pretrained(folder)
    return folder
