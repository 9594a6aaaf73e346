"""Tiny encoder-decoders with processors of transformers' own classes, saved to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import transformers
from reach.builder import TYPES
from reach.shrunk import tiny_config
from reach.types import CHANGES
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from families import tiny_parts

SIDE = 32
MARKS = {"boi_token": "<boi>", "image_token": "<img>", "eoi_token": "<eoi>"}  # tokens 4, 5, 6


def _trocr() -> Any:
    pictures = transformers.ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return transformers.TrOCRProcessor(pictures, tiny_parts.tokenizer())


def _pix2struct() -> Any:
    pictures = transformers.Pix2StructImageProcessorPil(patch_size={"height": 2, "width": 4})
    return transformers.Pix2StructProcessor(pictures, tiny_parts.tokenizer())


def _t5gemma2() -> Any:
    pictures = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE})
    tokens = tiny_parts.tokenizer(*MARKS.values(), **MARKS)
    return transformers.Gemma3Processor(pictures, tokens, image_seq_length=4)


_IDS = {f"encoder.{n}_token_index": i for n, i in (("boi", 4), ("image", 5), ("eoi", 6))}
_IDS |= {"encoder.image_token_id": 5, "image_token_index": 5}
MADE = {
    "t5gemma2": (_t5gemma2, _IDS),
    "pix2struct": (_pix2struct, {}),
    "vision-encoder-decoder": (_trocr, {}),
}


def save(model_type: str, folder: Path) -> Path:
    """A checkpoint with its processor."""
    processor, own = MADE[model_type]
    config = tiny_config(model_type, CHANGES[model_type] | own)
    model = tiny.randomize(getattr(transformers, TYPES[model_type])(config))
    model.generation_config.decoder_start_token_id = 1
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
