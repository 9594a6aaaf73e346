"""A tiny random Chameleon with its own processor."""

from __future__ import annotations

from pathlib import Path

import tiny
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonProcessor,
)
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

from families.tiny_words import tokenizer

SIDE, CODES = 16, 24
LETTERS = "ABCDEFGHIJ"
IMAGE_TOKENS = tuple(
    "IMGIMG" + "".join(LETTERS[int(d)] for d in str(i)) + "Z" for i in range(CODES)
)
SPECIAL = ("<image>", "<racm3:break>", "<eoss>", "<sep>", *IMAGE_TOKENS)


def processor() -> ChameleonProcessor:
    pictures = ChameleonImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    return ChameleonProcessor(pictures, tokenizer(SPECIAL, sep_token="<sep>"), image_seq_length=16)


def build(**changes) -> ChameleonForConditionalGeneration:
    reader = tokenizer(SPECIAL)
    options = {
        "vocab_size": len(reader), "hidden_size": 32, "intermediate_size": 40,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "pad_token_id": 3, "vocabulary_map": reader.get_vocab(),
        "vq_config": {
            "embed_dim": 8, "num_embeddings": CODES, "latent_channels": 8, "resolution": SIDE,
            "base_channels": 32, "channel_multiplier": [1, 1, 1], "num_res_blocks": 1,
            "attn_type": "none",
        },
    }  # fmt: skip
    model = tiny.randomize(ChameleonForConditionalGeneration(ChameleonConfig(**options | changes)))
    return tiny.randomize(model, seed=1)


def save(folder: Path) -> Path:
    build().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
