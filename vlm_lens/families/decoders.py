"""Decoder-only language models: alone, and as the text model inside a vision-language model."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from vlm_lens.config import HookedConfig, StackConfig
from vlm_lens.errors import ModelError
from vlm_lens.families.base import Architecture, BlockParts, Family, Stack
from vlm_lens.points import Point, PointTable
from vlm_lens.sites import InputSite, OutputSite

_LLAMA = BlockParts(
    ln1="input_layernorm", attn="self_attn", q="q_proj", k="k_proj", v="v_proj", o="o_proj",
    ln2="post_attention_layernorm", mlp="mlp", mlp_pre="gate_proj", mlp_linear="up_proj",
    mlp_post="down_proj",
)  # fmt: skip

# Text models by `config.model_type`; all of these keep their parts under the same names.
DECODER_PARTS = {"llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA}

NO_VISION = "it is a language model without vision."


def decoder_stack(config: Any, path: str) -> Stack:
    """The blocks of a text model whose module stands at `path`.

    Raises:
        ModelError: A text model of a type that is not known.
    """
    if config.model_type not in DECODER_PARTS:
        raise ModelError(
            f"The text model is of type {config.model_type!r}; known are "
            f"{', '.join(sorted(DECODER_PARTS))}."
        )
    n_heads = config.num_attention_heads
    size = StackConfig(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=n_heads,
        n_key_value_heads=getattr(config, "num_key_value_heads", None) or n_heads,
        d_head=getattr(config, "head_dim", None) or config.hidden_size // n_heads,
        d_mlp=config.intermediate_size,
    )
    return Stack(f"{path}.layers", DECODER_PARTS[config.model_type], size)


def text_point(name: str, width: int, doc: str, site, axis: str = "d_model") -> Point:
    """A point of the language model outside its blocks, `[batch, pos, width]`."""
    return Point(name, ("batch", "pos", axis), (None, None, width), doc, site)


def embedding_point(stack: Stack, path: str) -> Point:
    """`hook_embed`: the token embeddings of a text model at `path`."""
    doc = "Token embeddings, before pictures are placed"
    return text_point("hook_embed", stack.size.d_model, doc, OutputSite(f"{path}.embed_tokens"))


def closing_points(stack: Stack, path: str, d_vocab: int) -> list[Point]:
    """The points after the last block: the final norm's output and the logits."""
    return [
        text_point("ln_final.hook_normalized", stack.size.d_model,
                   "What the unembedding reads: the final norm's output",
                   OutputSite(f"{path}.norm")),
        text_point("hook_logits", d_vocab, "Logits over the vocabulary",
                   OutputSite("", path=("logits",)), axis="d_vocab"),
    ]  # fmt: skip


class DecoderFamily(Family):
    """A plain language model: a HookedVLM with no vision points."""

    name = "decoder"
    model_types = tuple(DECODER_PARTS)

    def architecture(self, model: torch.nn.Module) -> Architecture:
        """The parts of a `...ForCausalLM`."""
        config = model.config
        stack = decoder_stack(config, "model")
        # The language model's input is the embedding itself; the name exists so that one recipe
        # runs on a model and on its base language model.
        merged = text_point("hook_merged", stack.size.d_model,
                            "The first block's input", InputSite("model.layers.0"))  # fmt: skip
        points = [
            embedding_point(stack, "model"),
            merged,
            *stack.points(),
            *closing_points(stack, "model", config.vocab_size),
        ]
        cfg = HookedConfig(
            model_name=config.name_or_path or type(model).__name__,
            family=f"{config.model_type} ({self.name})",
            d_vocab=config.vocab_size,
            **asdict(stack.size),
        )
        missing = {"vision.*": NO_VISION, "projector.*": NO_VISION}
        return Architecture(cfg, PointTable(points, missing), "model.norm", "lm_head")
