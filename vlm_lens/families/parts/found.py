"""A text model of a type that is not described: its parts found in one tiny recorded forward."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm_lens.errors import ModelError
from vlm_lens.families.parts.branches import describe_block
from vlm_lens.families.parts.decoders import DECODERS, Decoder, DecoderNames, find_decoder
from vlm_lens.families.parts.found_block import Block
from vlm_lens.families.parts.recording import Recording, record, same
from vlm_lens.families.parts.stack import Stack
from vlm_lens.points.config import StackConfig
from vlm_lens.points.sites import InputSite, submodule

HELP = (
    "Describe the model in a family of its own: a class with `model_types` and "
    "`architecture(model)`, registered by `vlm_lens.families.register`; CONTRIBUTING.md, 'Adding a "
    "family', has the lines."
)
_N_TOKENS = 6


@dataclass(frozen=True)
class FoundDecoder:
    """A text model found in a larger model.

    Attributes:
        decoder: It.
        unembed: Path of the layer that gives logits.
        residual_breaks: Why what leaves a block is not what enters the next one, where so.
        adds_positions: Whether positions are added to the embeddings before the first block.
    """

    decoder: Decoder
    unembed: str
    residual_breaks: str = ""
    adds_positions: bool = False


def found_decoder(model: nn.Module) -> FoundDecoder:
    """Finds a model's text model, and proves what it finds by its numbers.

    Raises:
        ModelError: The model has no list of blocks that pass a stream on, no embedding, final norm
            or output layer, or does not run on a few tokens.
    """
    config = model.config.get_text_config(decoder=True)
    embed = path_of(model, model.get_input_embeddings(), "token embedding")
    unembed = path_of(model, model.get_output_embeddings(), "output layer")
    if any(p.is_meta for p in model.parameters()):
        return _without_weights(model, config, embed, unembed)
    recording = _recorded(model, config)
    path = _blocks(model, config, recording)
    blocks = submodule(model, path)
    ends = [_end(recording, f"{path}.{i}") for i in range(len(blocks))]
    entering, keys = _streams(recording, path, ends)
    scale = float(getattr(config, "residual_multiplier", None) or 1.0)
    activation = _activation(config)
    described = [
        describe_block(block, f"{path}.{i}", entering[i], recording, activation, scale)
        for i, block in enumerate(blocks)
    ]
    stack = _stack(path, config, described, keys, entering[0].shape[-1])
    norm = _final_norm(recording, path, unembed, ends[-1])
    breaks = [i for i in range(1, len(ends)) if not same(entering[i], ends[i - 1])]
    return FoundDecoder(
        Decoder(stack, embed, norm),
        unembed,
        residual_breaks=f"the model adds something before block {breaks[0]}" if breaks else "",
        adds_positions=not same(recording.calls[embed].gave, entering[0]),
    )


def text_model(model: nn.Module, path: str, names: DecoderNames | None = None) -> Decoder:
    """The text model at a path: as described, or found where its type is not described.

    Raises:
        ModelError: It is not described, and cannot be found.
    """
    config = model.config.get_text_config(decoder=True)
    if names is not None or config.model_type in DECODERS:
        return find_decoder(config, path, names)
    found = found_decoder(model)
    if found.residual_breaks:
        raise ModelError(
            f"The text model is of type {config.model_type!r}, and {found.residual_breaks}. {HELP}"
        )
    return found.decoder


def path_of(model: nn.Module, part: nn.Module | None, what: str) -> str:
    """The path of a module.

    Raises:
        ModelError: The model names none.
    """
    for path, module in model.named_modules():
        if module is part and path:
            return path
    raise ModelError(f"{type(model).__name__} names no {what}. {HELP}")


def _recorded(model: nn.Module, config: Any) -> Recording:
    barred = {v for k, v in vars(model.config).items() if k.endswith("token_id") and v is not None}
    barred |= {getattr(model.config, n, None) for n in ("image_token_index", "video_token_index")}
    barred |= {getattr(config, n, None) for n in ("pad_token_id", "bos_token_id", "eos_token_id")}
    free = [i for i in range(min(config.vocab_size, 64)) if i not in barred][-_N_TOKENS:]
    device = model.get_input_embeddings().weight.device
    try:
        return record(model, torch.tensor([free], device=device))
    except Exception as error:  # whatever a model may raise on text alone
        raise ModelError(
            f"{type(model).__name__} does not run on a few tokens of text, so its parts cannot be "
            f"found: {type(error).__name__}: {str(error)[:200]} {HELP}"
        ) from error


def _lists(model: nn.Module, config: Any) -> list[str]:
    """Lists of modules that may be the blocks of the text model: as many as its config has."""
    n = getattr(config, "num_hidden_layers", None)
    vision = getattr(model.config, "vision_config", None)
    towers = [
        path for path, m in model.named_modules()
        if vision is not None and path and getattr(m, "config", None) is vision
    ]  # fmt: skip
    found = [
        path for path, m in model.named_modules()
        if isinstance(m, nn.ModuleList) and len(m) == n
        and not any(path.startswith(f"{t}.") for t in towers)
    ]  # fmt: skip
    return [p for p in found if not any(p.startswith(f"{o}.") for o in found)]


def _blocks(model: nn.Module, config: Any, recording: Recording) -> str:
    """The list of blocks: each was called once, and what one gives the next takes."""
    found = []
    for path in _lists(model, config):
        names = [f"{path}.{i}" for i in range(len(submodule(model, path)))]
        if all(n in recording.calls and recording.calls[n].gave is not None for n in names):
            found.append(path)
    if len(found) != 1:
        held = ", ".join(found or _lists(model, config)) or "none"
        raise ModelError(
            f"{len(found)} lists of modules of {type(model).__name__} could be its blocks "
            f"({held}). {HELP}"
        )
    return found[0]


def _end(recording: Recording, block: str) -> Tensor:
    """What leaves a block."""
    gave = recording.calls[block].gave
    if gave is None:
        raise ModelError(f"{block} gives no tensor. {HELP}")
    return gave


def _streams(
    recording: Recording, path: str, ends: list[Tensor]
) -> tuple[list[Tensor], list[int | str]]:
    """What enters each block, and as which argument."""
    entering, keys = [], []
    for i in range(len(ends)):
        call = recording.calls[f"{path}.{i}"]
        key = call.argument(ends[i - 1]) if i else None
        if key is None:
            shaped = [k for k, x in call.given.items() if x.shape == ends[i].shape]
            if not shaped:
                raise ModelError(f"{path}.{i} takes nothing of the shape that it gives. {HELP}")
            key = keys[-1] if keys and keys[-1] in shaped else shaped[0]
        entering.append(call.given[key])
        keys.append(key)
    return entering, keys


def _stack(
    path: str, config: Any, blocks: list[Block], keys: list[int | str], d_model: int
) -> Stack:
    def most(values: list[int | None], otherwise: int) -> int:
        counted = Counter(v for v in values if v)
        return counted.most_common(1)[0][0] if counted else otherwise

    n_heads = most([b.n_heads for b in blocks], getattr(config, "num_attention_heads", None) or 1)
    size = StackConfig(
        n_layers=len(blocks),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=most([b.n_key_value_heads for b in blocks], n_heads),
        d_head=most([b.d_head for b in blocks], d_model // n_heads),
        d_mlp=most([b.d_mlp for b in blocks], getattr(config, "intermediate_size", None) or 0),
    )
    sites, lacks = {}, {}
    for i, (block, key) in enumerate(zip(blocks, keys, strict=True)):
        odd = {
            n for n, mine, usual in (
                ("attn.hook_q", (block.n_heads, block.d_head), (size.n_heads, size.d_head)),
                ("attn.hook_attn_scores", block.n_heads or size.n_heads, size.n_heads),
                ("attn.hook_pattern", block.n_heads or size.n_heads, size.n_heads),
                ("attn.hook_z", (block.n_heads, block.d_head), (size.n_heads, size.d_head)),
                ("attn.hook_k", (block.n_key_value_heads, block.d_head),
                 (size.n_key_value_heads, size.d_head)),
                ("attn.hook_v", (block.n_key_value_heads, block.d_head),
                 (size.n_key_value_heads, size.d_head)),
                ("mlp.hook_pre", block.d_mlp, size.d_mlp),
                ("mlp.hook_pre_linear", block.d_mlp, size.d_mlp),
                ("mlp.hook_post", block.d_mlp, size.d_mlp),
            ) if n in block.sites and mine != usual
        }  # fmt: skip
        index, keyword = (key, "hidden_states") if isinstance(key, int) else (99, key)
        own = {n: site for n, site in block.sites.items() if n not in odd}
        own["hook_resid_pre"] = lambda b, k=keyword, n=index: InputSite(b, k, n)
        sites[i] = own
        lacks[i] = block.lacks | dict.fromkeys(odd, "its sizes differ from those of other blocks.")
    shared = {
        n: why for n, why in lacks[0].items() if all(row.get(n) == why for row in lacks.values())
    }
    rest = {i: {n: w for n, w in row.items() if n not in shared} for i, row in lacks.items()}
    return Stack(
        path, None, size, lacks=shared, layer_sites=sites, layer_lacks=rest,
        layer_read_only={i: b.read_only for i, b in enumerate(blocks) if b.read_only},
    )  # fmt: skip


def _final_norm(recording: Recording, path: str, unembed: str, end: Tensor) -> str:
    """The module between the last block and the output layer."""
    for name, call in recording.calls.items():
        outside = not name.startswith(f"{path}.") and name != unembed
        if outside and call.gave is not None and call.argument(end) is not None:
            return name
    raise ModelError(f"Nothing reads what leaves {path} as a final norm would. {HELP}")


def _activation(config: Any) -> Any:
    from transformers.activations import ACT2FN

    for name in ("hidden_act", "hidden_activation", "activation_function"):
        if isinstance(getattr(config, name, None), str):
            return ACT2FN[getattr(config, name)]
    return None


def _without_weights(model: nn.Module, config: Any, embed: str, unembed: str) -> FoundDecoder:
    """What a model without weights shows: enough to refuse it before they are read."""
    found = _lists(model, config)
    if len(found) != 1:
        raise ModelError(
            f"{len(found)} lists of modules of {type(model).__name__} could be its blocks "
            f"({', '.join(found) or 'none'}). {HELP}"
        )
    n_heads = getattr(config, "num_attention_heads", None) or 1
    size = StackConfig(config.num_hidden_layers, config.hidden_size, n_heads, n_heads, 1, 0)
    decoder = Decoder(Stack(found[0], None, size), embed, "")
    return FoundDecoder(decoder, unembed)
