"""A text model of a type that is not described: its parts found in one tiny recorded forward."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlm_lens.errors import ModelError
from vlm_lens.families.parts.branches import describe_block
from vlm_lens.families.parts.decoders import DECODERS, Decoder, DecoderNames, find_decoder
from vlm_lens.families.parts.found_block import Block
from vlm_lens.families.parts.found_encoder import (
    Encoder,
    bare_encoder,
    found_encoder,
    is_encoder_decoder,
    record_answer,
)
from vlm_lens.families.parts.found_stack import activation_of, config_value, found_stack
from vlm_lens.families.parts.probe_pictures import beside_text
from vlm_lens.families.parts.recording import Recording, record_text, same
from vlm_lens.families.parts.stack import Stack
from vlm_lens.points.config import StackConfig
from vlm_lens.points.sites import StreamsView, View, submodule

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
        embed_unseen: Why what its token embedding gave is no point, where so.
        unknown_head: Why logits cannot be computed from what leaves the last block, where so.
        encoder: Its encoder, where it has one.
        called: Paths of the modules that a text without pictures calls.
    """

    decoder: Decoder
    unembed: str
    residual_breaks: str = ""
    adds_positions: bool = False
    unknown_head: str = ""
    embed_unseen: str = ""
    encoder: Encoder | None = None
    called: frozenset[str] = frozenset()


def found_decoder(model: nn.Module) -> FoundDecoder:
    """Finds a model's text model, and proves what it finds by its numbers.

    Raises:
        ModelError: The model has no list of blocks that pass a stream on, no embedding, final norm
            or output layer, or does not run on a few tokens.
    """
    config = model.config.get_text_config(decoder=True)
    encoder_path = _encoder_path(model)
    embed = path_of(model, _embedding(model), "token embedding")
    if not isinstance(getattr(submodule(model, embed), "weight", None), Tensor):
        raise ModelError(
            f"{type(model).__name__} embeds its tokens by {embed}, which has no table of words: it "
            f"reads several tokens at each position. {HELP}"
        )
    unembed = path_of(model, _output_layer(model, config), "output layer")
    if any(p.is_meta for p in model.parameters()):
        return _without_weights(model, config, embed, unembed, encoder_path)
    recording = _recorded(model, config)
    if recording.logits is not None and recording.logits.shape[:2] != (1, _N_TOKENS):
        raise ModelError(
            f"{type(model).__name__} gives logits of {recording.logits.shape[1]} positions for "
            f"{_N_TOKENS} tokens: it is no model that says at each token what comes next. {HELP}"
        )
    if not recording.times(embed):
        raise ModelError(
            f"{type(model).__name__} embeds its tokens without calling {embed}, so that nothing "
            f"stands there to be read. {HELP}"
        )
    embedded = recording.calls[embed].gave
    if recording.times(embed) == 1:
        _check_positions(model, embedded)
    path = _blocks(model, config, recording, unembed, encoder_path)
    blocks = submodule(model, path)
    ends = [_end(recording, f"{path}.{i}") for i in range(len(blocks))]
    entering, keys = _streams(recording, path, ends)
    scale = float(config_value(config, "residual_multiplier") or 1.0)
    activation = activation_of(config)
    described = [
        describe_block(block, f"{path}.{i}", entering[i], recording, activation, scale)
        for i, block in enumerate(blocks)
    ]
    view = _streams_view(entering[0], embedded)
    width = entering[0].numel() // embedded.shape[:-1].numel()
    stack = found_stack(path, config, described, keys, width, view)
    encoder = None
    if encoder_path is not None:
        encoder = found_encoder(model, recording, encoder_path)
        stack = replace(stack, crosses_to=encoder.space)
    norm, joined = _final_norm(recording, path, unembed, ends[-1])
    if not norm and encoder is None and getattr(model.config, "vision_config", None) is not None:
        raise ModelError(
            f"The output layer reads what leaves {path} itself, with no norm between. {HELP}"
        )
    if recording.times(norm) > 1:
        raise ModelError(
            f"{norm}, which the output layer reads, runs several times in {type(model).__name__}, "
            f"so what it gives at the end cannot be told from the rest. {HELP}"
        )
    breaks = [i for i in range(1, len(ends)) if not same(entering[i], ends[i - 1])]
    return FoundDecoder(
        Decoder(
            stack,
            embed,
            norm,
            width=embedded.shape[-1],
            d_final=recording.calls[norm].gave.shape[-1] if norm else None,
        ),
        unembed,
        residual_breaks=_breaks(described, breaks),
        adds_positions=not same(embedded, entering[0]),
        unknown_head=joined,
        embed_unseen=_embed_unseen(recording, embed),
        encoder=encoder,
        called=frozenset(() if recording.pictured else recording.calls),
    )


def _check_positions(model: nn.Module, embedded: Tensor) -> None:
    """Checks that what is embedded is a prompt's tokens, and those alone.

    Raises:
        ModelError: It is something else.
    """
    held = embedded.shape[:-1]
    if held == (1, _N_TOKENS):
        return
    why = f"embeds {held.numel()} positions for {_N_TOKENS} tokens: it puts some of its own before"
    if held.numel() == _N_TOKENS:
        why = f"passes on {list(embedded.shape)} for a batch of one: positions do not come second"
    raise ModelError(f"{type(model).__name__} {why}. {HELP}")


def _breaks(blocks: list[Block], changed: list[int]) -> str:
    """Why the stream is not the sum of what blocks add to it, where so."""
    if any(block.norms_sums for block in blocks):
        return "its blocks norm the stream each time that they have added to it"
    return f"the model adds something before block {changed[0]}" if changed else ""


def _embed_unseen(recording: Recording, embed: str) -> str:
    if recording.times(embed) > 1:
        return "one module embeds what the encoder reads and what the decoder reads."
    return "the model adds to it in place." if recording.calls[embed].overwritten else ""


def _encoder_path(model: nn.Module) -> str | None:
    """The path of the encoder; `None` for a model that has none."""
    if not is_encoder_decoder(model):
        return None
    return path_of(model, model.get_encoder(), "encoder")


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


def _embedding(model: nn.Module) -> nn.Module | None:
    """The token embedding; of an encoder-decoder, the decoder's."""
    holder: Any = model
    try:
        model.get_input_embeddings()  # which is asked where a model computes
    except NotImplementedError:
        return None
    while is_encoder_decoder(model) and callable(getattr(holder, "get_decoder", None)):
        inner = holder.get_decoder()
        if inner is holder or inner is None:
            break
        holder = inner
    try:
        return holder.get_input_embeddings()
    except NotImplementedError:
        return None


def _streams_view(stream: Tensor, embedded: Tensor) -> View | None:
    """How a stream is shown: as it is, or where there are several of them, side by side.

    Raises:
        ModelError: It is neither.
    """
    if stream.dim() == embedded.dim():
        return None
    for axis, size in enumerate(stream.shape):
        if stream.shape[:axis] + stream.shape[axis + 1 :] == embedded.shape and size > 1:
            return StreamsView(axis)
    raise ModelError(
        f"The blocks pass on {list(stream.shape)} for {list(embedded.shape)} embeddings. {HELP}"
    )


def _output_layer(model: nn.Module, config: Any) -> nn.Module | None:
    """The layer that gives logits: as the model names it, or one as wide as its vocabulary."""
    named = model.get_output_embeddings()
    if named is not None:
        return named
    wide = [m for m in model.modules() if isinstance(m, nn.Linear)
            and m.out_features == config.vocab_size]  # fmt: skip
    return wide[0] if len(wide) == 1 else None


def _recorded(model: nn.Module, config: Any) -> Recording:
    barred = {v for k, v in vars(model.config).items() if k.endswith(("token_id", "token_index"))}
    barred |= {config_value(config, f"{n}_token_id") for n in ("pad", "bos", "eos")}
    free = [i for i in range(min(config.vocab_size, 64)) if i not in barred][-_N_TOKENS:]
    device = _embedding(model).weight.device
    ids, first = torch.tensor([free], device=device), None
    if is_encoder_decoder(model):
        return record_answer(model, ids, device)
    for more in ({}, *beside_text(model, ids)):
        try:
            return record_text(model, ids, **more)
        except Exception as error:  # noqa: BLE001  whatever a model may raise on text alone
            first = first or error
    raise ModelError(
        f"{type(model).__name__} does not run on a few tokens of text, so its parts cannot be "
        f"found: {type(first).__name__}: {str(first)[:200]} {HELP}"
    ) from first


def _lists(model: nn.Module, config: Any, encoder: str | None) -> list[str]:
    """Lists of modules that may be the text model's blocks: as long as its config says, or all."""
    n = config_value(config, "num_hidden_layers")
    vision = getattr(model.config, "vision_config", None)
    towers = [
        path for path, m in model.named_modules()
        if vision is not None and path and getattr(m, "config", None) is vision
    ]  # fmt: skip
    found = {
        path: len(m) for path, m in model.named_modules()
        if isinstance(m, nn.ModuleList) and len(m)
        and not any(path.startswith(f"{t}.") for t in towers)
        and (encoder is None or not path.startswith(f"{encoder}."))
    }  # fmt: skip
    as_many = [p for p, length in found.items() if length == n]
    if as_many and encoder is None:
        found = dict.fromkeys(as_many)
    return [p for p in found if not any(p.startswith(f"{o}.") for o in found)]


def _blocks(
    model: nn.Module, config: Any, recording: Recording, unembed: str, encoder: str | None
) -> str:
    """The list of blocks: each was called once, and what one gives the next takes."""
    found = []
    for path in _lists(model, config, encoder):
        names = [f"{path}.{i}" for i in range(len(submodule(model, path)))]
        if all(n in recording.calls and recording.calls[n].gave is not None for n in names):
            found.append(path)
    if len(found) > 1:
        found = [p for p in found if _ends_in_logits(recording, p, unembed)] or found
    if len(found) != 1:
        held = ", ".join(found or _lists(model, config, encoder)) or "none"
        raise ModelError(
            f"{len(found)} lists of modules of {type(model).__name__} could be its blocks "
            f"({held}). {HELP}"
        )
    return found[0]


def _ends_in_logits(recording: Recording, path: str, unembed: str) -> bool:
    """Whether a norm reads what leaves the last block, and the output layer reads that norm."""
    last = max(int(n.rsplit(".", 1)[1]) for n in recording.calls
               if n.startswith(f"{path}.") and n.count(".") == path.count(".") + 1)  # fmt: skip
    try:
        return not _final_norm(recording, path, unembed, _end(recording, f"{path}.{last}"))[1]
    except ModelError:
        return False


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


def _final_norm(recording: Recording, path: str, unembed: str, end: Tensor) -> tuple[str, str]:
    """The module between the last block and the output layer, and why it does not read the stream.

    Where nothing reads what leaves the last block, streams are joined first: it is the module whose
    output the output layer reads.
    """
    outside = {
        n: c for n, c in recording.calls.items()
        if not n.startswith(f"{path}.") and n != unembed and c.gave is not None
    }  # fmt: skip
    head = recording.calls.get(unembed)
    if head is not None and head.argument(end) is not None:
        return "", ""  # no norm stands between
    readers = [n for n, c in outside.items() if c.argument(end) is not None]
    last = [n for n, c in outside.items() if head is not None and head.argument(c.gave) is not None]
    if readers and (readers[0] in last or not last):
        return readers[0], ""
    if last:
        return last[0], "what its final norm reads is not what leaves its last block"
    raise ModelError(f"Nothing reads what leaves {path} as a final norm would. {HELP}")


def _without_weights(
    model: nn.Module, config: Any, embed: str, unembed: str, encoder: str | None
) -> FoundDecoder:
    """What a model without weights shows: enough to refuse it before they are read."""
    found = _lists(model, config, encoder)
    if len(found) != 1:
        raise ModelError(
            f"{len(found)} lists of modules of {type(model).__name__} could be its blocks "
            f"({', '.join(found) or 'none'}). {HELP}"
        )
    n_heads = config_value(config, "num_attention_heads") or 1
    size = StackConfig(config.num_hidden_layers, config.hidden_size, n_heads, n_heads, 1, 0)
    decoder = Decoder(Stack(found[0], None, size), embed, "")
    if encoder is None:
        return FoundDecoder(decoder, unembed)
    return FoundDecoder(decoder, unembed, encoder=bare_encoder(model, encoder))
