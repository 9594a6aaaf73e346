"""Puts toy-induction together as an ordinary Hugging Face model with its processor."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlm_lens.zoo.induction.codes import CELLS, WORDS
from vlm_lens.zoo.induction.language import ROPE_THETA, fill_language_model
from vlm_lens.zoo.induction.plan import BLOCKS, D_HEAD, D_MODEL, EPSILON, HEADS, token_list
from vlm_lens.zoo.induction.vision import (
    D_VISION,
    NEURONS,
    PATCH,
    SIDE,
    fill_projector,
    fill_tower,
)
from vlm_lens.zoo.train.tokenization import build_tokenizer

__all__ = ["build", "write"]

_MORE = (
    "circle", "square", "triangle", "diamond", "cross", "ring", "one", "two", "three", "four",
    "five", "six", *string.ascii_lowercase,
)  # fmt: skip


@torch.no_grad()
def build() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model and its processor, from nothing but the formulas.

    Returns:
        The model in evaluation mode, and the processor.
    """
    words = [*CELLS, *WORDS, *_MORE]
    tokenizer = build_tokenizer([*words, *(f" {word}" for word in words)])
    tokens = token_list(tokenizer)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=D_MODEL,
        intermediate_size=8,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=D_HEAD,
        rms_norm_eps=EPSILON,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=False,
        **ids,
    )
    vision = CLIPVisionConfig(
        hidden_size=D_VISION,
        intermediate_size=NEURONS,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=D_MODEL,
        layer_norm_eps=EPSILON,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=len(CELLS),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        **ids,
    )
    model = LlavaForConditionalGeneration(config)
    for weight in model.parameters():
        weight.zero_()
    fill_tower(model.model.vision_tower)
    fill_projector(model.model.multi_modal_projector, tokens)
    fill_language_model(model.model.language_model, model.lm_head, tokens)
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    processor = LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return model.eval(), processor


def write(folder: Path) -> None:
    """Saves model and processor as a Hugging Face folder.

    Args:
        folder: Where to; made if it is not there.
    """
    model, processor = build()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
