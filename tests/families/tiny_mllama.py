"""A tiny random Mllama with its own processor."""

from __future__ import annotations

from pathlib import Path

import tiny
from transformers import MllamaConfig, MllamaForConditionalGeneration, MllamaProcessor
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from families.tiny_words import tokenizer

PATCH, TILE = 4, 12
SPECIAL = ("<|python_tag|>",)


def reader():
    made = tokenizer(SPECIAL)
    made.add_special_tokens({"additional_special_tokens": ["<|image|>"]})  # the last of all
    return made


def processor() -> MllamaProcessor:
    pictures = MllamaImageProcessorPil(size={"height": TILE, "width": TILE}, max_image_tiles=4)
    return MllamaProcessor(pictures, reader())


def build() -> MllamaForConditionalGeneration:
    image = reader().convert_tokens_to_ids("<|image|>")
    config = MllamaConfig(
        vision_config={
            "hidden_size": 24, "attention_heads": 3, "intermediate_size": 36,
            "num_hidden_layers": 3, "num_global_layers": 1, "vision_output_dim": 72,
            "intermediate_layers_indices": [0, 1], "image_size": TILE, "patch_size": PATCH,
            "max_num_tiles": 4,
        },
        text_config={
            "vocab_size": image, "hidden_size": 32, "intermediate_size": 40,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "cross_attention_layers": [1], "max_position_embeddings": 512, "pad_token_id": 3,
            "bos_token_id": 1, "eos_token_id": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        image_token_index=image,
    )  # fmt: skip
    return tiny.randomize(MllamaForConditionalGeneration(config))


def save(folder: Path) -> Path:
    build().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
