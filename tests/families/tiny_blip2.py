"""A tiny random BLIP-2 with its own processor."""

from __future__ import annotations

from pathlib import Path

import tiny
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from families.tiny_words import tokenizer

PATCH, SIDE, QUERIES = 8, 32, 4
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXTS = {
    "opt": {
        "model_type": "opt", "vocab_size": 264, **SIZES, "ffn_dim": 40, "word_embed_proj_dim": 32,
        "max_position_embeddings": 512, "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2,
    },
    "t5": {
        "model_type": "t5", "vocab_size": 264, "d_model": 32, "num_layers": 1, "num_heads": 4,
        "d_kv": 8, "d_ff": 40, "decoder_start_token_id": 0,
    },
}  # fmt: skip


def processor() -> Blip2Processor:
    pictures = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return Blip2Processor(pictures, tokenizer(("<image>",)), num_query_tokens=QUERIES)


def build(text: str = "opt", **changes) -> Blip2ForConditionalGeneration:
    config = Blip2Config(
        vision_config={
            "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2,
            "num_attention_heads": 3, "image_size": SIDE, "patch_size": PATCH,
        },
        qformer_config={
            "vocab_size": 40, **SIZES, "hidden_size": 16, "intermediate_size": 20,
            "num_hidden_layers": 3,
        },
        text_config=dict(TEXTS[text]),
        **{"num_query_tokens": QUERIES, "image_token_index": 4} | changes,
    )  # fmt: skip
    return tiny.randomize(Blip2ForConditionalGeneration(config))


def save(folder: Path) -> Path:
    build().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
