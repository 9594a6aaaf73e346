"""A tiny Florence-2 with a processor of its own class."""

from __future__ import annotations

from pathlib import Path

import tiny
from transformers import (
    BartConfig,
    CLIPImageProcessorPil,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    Florence2VisionConfig,
)

from families import tiny_parts

SIDE, CELLS = 32, 4


def processor() -> Florence2Processor:
    pictures = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, do_convert_rgb=True
    )
    pictures.image_seq_length = CELLS**2 + 1
    return Florence2Processor(pictures, tiny_parts.tokenizer("<image>", image_token="<image>"))


def build() -> Florence2ForConditionalGeneration:
    text = BartConfig(
        vocab_size=128, d_model=32, encoder_layers=3, decoder_layers=2, encoder_ffn_dim=40,
        decoder_ffn_dim=40, encoder_attention_heads=4, decoder_attention_heads=4,
        max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    vision = Florence2VisionConfig(
        depths=[1, 1], patch_size=[7, 3], patch_stride=[4, 2], patch_padding=[3, 1],
        patch_prenorm=[False, True], embed_dim=[8, 24], num_heads=[2, 3], num_groups=[2, 3],
        window_size=4, projection_dim=32,
    )  # fmt: skip
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=4)
    model = tiny.randomize(Florence2ForConditionalGeneration(config))
    for name, weight in model.named_parameters():  # what is painted stays in place
        if "vision_tower" in name and any(n in name for n in ("_attn.proj", "conv1", "conv2")):
            weight.data.mul_(0.05)
    model.generation_config.decoder_start_token_id = 2
    return model


def save(folder: Path) -> Path:
    build().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
