"""Tiny random models of the real architectures, their processors, and plain torch hooks.

Everything a test compares the package with is made here, from Hugging Face and torch alone.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

CORPUS = [
    "Q:Greece\nA:Athens\n\nQ:Peru\nA:Lima\n\nQ:France\nA:Paris\n\nQ:Japan\nA:Tokyo\n\n",
    "What is the capital of the country? The colour of the fruit is red, green or yellow.",
] * 4
D_VOCAB = 420
IMAGE_SIDE, PATCH = 32, 8

VLMS = ("clip-llama", "siglip-mistral", "clip-qwen2")
LMS = ("llama", "mistral", "qwen2")
_TEXT = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}


# ---------------------------------------------------------------------- tokenizers, processors


@cache
def _bpe(kind: str) -> str:
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    if kind == "bytes":
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r" ?\w+|\s|[^\w\s]"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        bpe.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:  # the form of Llama's: a sign for the space, byte tokens for what is not in the alphabet
        special += [f"<0x{i:02X}>" for i in range(128)]
        bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        bpe.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
        bpe.decoder = decoders.Sequence(
            [
                decoders.Replace("\u2581", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
        alphabet = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:,.?\u2581")
    corpus = CORPUS if kind == "bytes" else [c.replace("\n", " ") for c in CORPUS]
    words = corpus if kind == "bytes" else [w for c in corpus for w in c.split(" ")]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(words, trainer)
    if kind == "bytes":
        return bpe.to_str()
    state = json.loads(bpe.to_str())  # byte tokens are no added tokens
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    return json.dumps(state)


def tokenizer(kind: str = "bytes", *, pad: bool = True) -> PreTrainedTokenizerFast:
    """A small tokenizer that writes `<s>` first; `kind` is `"bytes"` or `"pieces"`."""
    from tokenizers.processors import TemplateProcessing

    made = Tokenizer.from_str(_bpe(kind))
    made.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        **({"pad_token": "<pad>"} if pad else {}),
    )


def processor(tower: str, kind: str = "bytes", side: int = IMAGE_SIDE, patch: int = PATCH):
    """A LlavaProcessor with CLIP's or SigLIP's image processor."""
    if tower == "clip":
        pictures = CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
    else:
        pictures = SiglipImageProcessorPil(size={"height": side, "width": side})
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer(kind),
        patch_size=patch,
        vision_feature_select_strategy="default" if tower == "clip" else "full",
        num_additional_image_tokens=1 if tower == "clip" else 0,
        image_token="<image>",
    )


# ---------------------------------------------------------------------- models


def _text_config(kind: str, **changes: Any) -> Any:
    config, _ = _TEXT[kind]
    options = {
        "vocab_size": D_VOCAB,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "pad_token_id": 3,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return config(**(options | changes))


def _vision_config(tower: str, **changes: Any) -> Any:
    config = CLIPVisionConfig if tower == "clip" else SiglipVisionConfig
    options = {
        "hidden_size": 24,
        "intermediate_size": 36,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": IMAGE_SIDE,
        "patch_size": PATCH,
    }
    return config(**(options | changes))


def llava_config(
    tower: str,
    text: str,
    *,
    vision: dict | None = None,
    decoder: dict | None = None,
    **changes: Any,
) -> LlavaConfig:
    """The config of a tiny LLaVA."""
    options = {
        "vision_config": _vision_config(tower, **(vision or {})),
        "text_config": _text_config(text, **(decoder or {})),
        "image_token_index": 4,
        "vision_feature_layer": -2 if tower == "clip" else -1,
        "vision_feature_select_strategy": "default" if tower == "clip" else "full",
        "tie_word_embeddings": False,
    }
    return LlavaConfig(**(options | changes))


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0, scale: float = 1.0) -> nn.Module:
    """Weights that make every part matter, norms included."""
    source = torch.Generator().manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        noise = torch.randn(weight.shape, generator=source)
        if "norm" in name and name.endswith("weight"):
            weight.copy_(1 + 0.3 * noise)
        elif name.endswith("bias") or weight.dim() == 1:
            weight.copy_(0.2 * noise)
        elif "embed" in name:
            weight.copy_(0.8 * noise)
        else:
            weight.copy_(1.2 * scale * noise / weight[0].numel() ** 0.5)
    return model.eval()


def build(name: str, *, attention: str = "sdpa", seed: int = 0, **changes: Any) -> nn.Module:
    """A model by its short name; the same weights every time."""
    if name in _TEXT:
        config = _text_config(name, **changes)
        config._attn_implementation = attention
        return randomize(_TEXT[name][1](config), seed)
    tower, text = name.split("-")
    config = llava_config(tower, text, **changes)
    config._attn_implementation = attention
    config.vision_config._attn_implementation = attention
    config.text_config._attn_implementation = attention
    return randomize(LlavaForConditionalGeneration(config), seed)


def reader(name: str) -> Any:
    """The processor or tokenizer that goes with a model."""
    if name in _TEXT:
        return tokenizer("pieces" if name == "llama" else "bytes")
    tower, text = name.split("-")
    return processor(tower, "pieces" if text == "llama" else "bytes")


def save(name: str, folder: Path) -> Path:
    """A model and its processor in a folder, as a checkpoint."""
    build(name).save_pretrained(folder)
    reader(name).save_pretrained(folder)
    return folder


def eager_copy(model: nn.Module) -> nn.Module:
    """The same model with eager attention, for Hugging Face's own `output_attentions`."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    return twin


def noise_picture(seed: int = 0, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """A picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# ---------------------------------------------------------------------- plain torch hooks


def first(output: Any) -> Tensor:
    """The tensor that a module returns, alone or first in a tuple."""
    return output if isinstance(output, Tensor) else output[0]


_DECODER = {
    "hook_resid_pre": ("", "in"),
    "ln1.hook_normalized": ("input_layernorm", "out"),
    "attn.hook_q": ("self_attn.q_proj", "out"),
    "attn.hook_k": ("self_attn.k_proj", "out"),
    "attn.hook_v": ("self_attn.v_proj", "out"),
    "attn.hook_z": ("self_attn.o_proj", "in"),
    "hook_attn_out": ("self_attn", "out"),
    "hook_resid_mid": ("post_attention_layernorm", "in"),
    "ln2.hook_normalized": ("post_attention_layernorm", "out"),
    "mlp.hook_pre": ("mlp.gate_proj", "out"),
    "mlp.hook_pre_linear": ("mlp.up_proj", "out"),
    "mlp.hook_post": ("mlp.down_proj", "in"),
    "hook_mlp_out": ("mlp", "out"),
    "hook_resid_post": ("", "out"),
}
_TOWER = _DECODER | {
    "ln1.hook_normalized": ("layer_norm1", "out"),
    "attn.hook_z": ("self_attn.out_proj", "in"),
    "hook_resid_mid": ("layer_norm2", "in"),
    "ln2.hook_normalized": ("layer_norm2", "out"),
    "mlp.hook_pre": ("mlp.fc1", "out"),
    "mlp.hook_post": ("mlp.fc2", "in"),
}


def where(model: nn.Module, point: str) -> tuple[nn.Module, str]:
    """The module of a point, and whether the point is its input or its output.

    Attention scores and patterns, and the tower's selected features, have no module of their own.
    """
    picture = hasattr(model.model, "vision_tower")
    text = model.model.language_model if picture else model.model
    outside = {
        "hook_embed": (text.embed_tokens, "out"),
        "hook_merged": (text.layers[0], "in"),
        "ln_final.hook_normalized": (text.norm, "out"),
        "hook_logits": (model.lm_head, "out"),
    }
    if picture:
        outside["projector.hook_in"] = (model.model.multi_modal_projector, "in")
        outside["projector.hook_out"] = (model.model.multi_modal_projector, "out")
        tower = model.model.vision_tower
        tower = getattr(tower, "vision_model", tower)
        outside["vision.hook_embed"] = (tower.embeddings, "out")
        read = model.config.vision_feature_layer % (len(tower.encoder.layers) + 1)
        outside["vision.hook_out"] = (tower.encoder.layers[read - 1], "out")
    if point in outside:
        return outside[point]
    vision = point.startswith("vision.")
    _, layer, rest = point.removeprefix("vision.").split(".", 2)
    block = tower.encoder.layers[int(layer)] if vision else text.layers[int(layer)]
    path, side = (_TOWER if vision else _DECODER)[rest]
    return block.get_submodule(path), side


@contextmanager
def plain_hook(module: nn.Module, side: str, fn: Callable[[Tensor], Tensor | None]):
    """`fn` on a module's input or output; what it returns replaces it."""

    def on_input(module, args, kwargs):
        if args:
            new = fn(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        key = next(k for k in ("hidden_states", "inputs_embeds", "image_features") if k in kwargs)
        new = fn(kwargs[key])
        return None if new is None else (args, kwargs | {key: new})

    def on_output(module, args, output):
        new = fn(first(output))
        if new is None:
            return None
        return new if isinstance(output, Tensor) else (new, *output[1:])

    if side == "in":
        handle = module.register_forward_pre_hook(on_input, prepend=True, with_kwargs=True)
    else:
        handle = module.register_forward_hook(on_output, prepend=True)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def plain_read(model: nn.Module, inputs: dict, points: Sequence[str]) -> dict[str, Tensor]:
    """What the modules of some points take or give in a plain forward."""
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for point in points:

            def keep(x: Tensor, point: str = point) -> None:
                seen[point] = x.clone()

            stack.enter_context(plain_hook(*where(model, point), keep))
        seen["logits"] = model(**inputs, use_cache=False).logits
    return seen


@torch.no_grad()
def plain_write(
    model: nn.Module, inputs: dict, point: str, fn: Callable[[Tensor], Tensor | None]
) -> Tensor:
    """Logits of a plain forward in which `fn` changes what a point's module takes or gives."""
    with plain_hook(*where(model, point), fn):
        return model(**inputs, use_cache=False).logits


@torch.no_grad()
def plain_logits(model: nn.Module, inputs: dict) -> Tensor:
    """Logits of a plain forward."""
    return model(**inputs, use_cache=False).logits


def hook_state(model: nn.Module) -> dict[str, tuple[int, int]]:
    """How many hooks stand on each module."""
    return {
        name: (len(m._forward_hooks), len(m._forward_pre_hooks))
        for name, m in model.named_modules()
    }
