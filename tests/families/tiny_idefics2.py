"""A tiny random Idefics2 with its own processor."""

from __future__ import annotations

from pathlib import Path

import tiny
from transformers import Idefics2Config, Idefics2ForConditionalGeneration, Idefics2Processor
from transformers.models.idefics2.configuration_idefics2 import (
    Idefics2PerceiverConfig,
    Idefics2VisionConfig,
)
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

from families.tiny_words import tokenizer

PATCH, LATENTS = 8, 5
SPECIAL = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")


def processor(split: bool = False) -> Idefics2Processor:
    pictures = Idefics2ImageProcessorPil(
        size={"shortest_edge": 24, "longest_edge": 56}, do_image_splitting=split
    )
    return Idefics2Processor(pictures, tokenizer(SPECIAL), image_seq_len=LATENTS)


def build() -> Idefics2ForConditionalGeneration:
    reader = tokenizer(SPECIAL)
    config = Idefics2Config(
        text_config={
            "model_type": "mistral", "vocab_size": len(reader) + 3, "hidden_size": 32,
            "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 3,
            "bos_token_id": 1, "eos_token_id": 2,
        },
        vision_config=Idefics2VisionConfig(
            hidden_size=24, intermediate_size=36, num_hidden_layers=3, num_attention_heads=3,
            image_size=56, patch_size=PATCH,
        ),
        perceiver_config=Idefics2PerceiverConfig(
            hidden_size=32, resampler_n_latents=LATENTS, resampler_depth=2, resampler_n_heads=4,
            resampler_head_dim=6, num_key_value_heads=2,
        ),
        image_token_id=reader.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )  # fmt: skip
    model = tiny.randomize(Idefics2ForConditionalGeneration(config))
    tiny.randomize(model.model.connector, seed=1)
    return model


def save(folder: Path, *, split: bool = False) -> Path:
    build().save_pretrained(folder)
    processor(split).save_pretrained(folder)
    return folder
