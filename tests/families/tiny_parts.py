"""What the tiny models of all families are made of."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import tiny
import torch
from tokenizers import Tokenizer, decoders, models
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import PreTrainedTokenizerFast

_CHARACTERS = [*string.ascii_letters, *string.digits, *" \n:;,.!?<>[]|/_()-'\""]

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
}


def tokenizer(*special: str, bos: bool = True, **named: str) -> PreTrainedTokenizerFast:
    """One token a character, and special tokens from id 4 on; `named` ones become attributes."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *special, *_CHARACTERS]
    vocabulary = {word: i for i, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    made.decoder = decoders.Fuse()
    if bos:
        made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(special),
        model_input_names=["input_ids", "attention_mask"],
        **({"extra_special_tokens": named} if named else {}),
    )


@torch.no_grad()
def finish(model: nn.Module) -> nn.Module:
    """Random weights; in the tower patches hardly mix, so that what is painted stays in place."""
    tiny.randomize(model)
    for name, weight in model.named_parameters():
        if "vision_tower" in name and ("out_proj" in name or "attention.o_proj" in name):
            weight.mul_(0.02)
    return model


def save(model: nn.Module, processor: Any, folder: Path) -> Path:
    """A checkpoint."""
    finish(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
