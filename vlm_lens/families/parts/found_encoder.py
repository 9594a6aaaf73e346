"""The encoder of a model that has one beside its decoder, found in one recorded forward.

An encoder that reads text, and pictures in it, has points under `encoder.`; one that reads pictures
alone is the model's tower, under `vision.`. What its blocks are made of is proved by numbers, as in
a text model (`branches.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlm_lens.errors import ModelError
from vlm_lens.families.parts.branches import describe_block
from vlm_lens.families.parts.found_stack import activation_of, config_value, found_stack
from vlm_lens.families.parts.recording import Recording, record
from vlm_lens.families.parts.stack import Stack
from vlm_lens.points.point import Point
from vlm_lens.points.sites import OutputSite, submodule

N_READ = 9  # tokens that the encoder reads in the recorded run: not as many as the decoder
NO_STREAM = "its encoder has no one list of blocks that pass a stream on."
_SIDE = 4  # patches along a side


@dataclass(frozen=True)
class Encoder:
    """The encoder of an encoder-decoder.

    Attributes:
        path: Path of the module that encodes.
        space: Whose positions its blocks count: `"encoder"`, or `"vision"` where it reads no text.
        start: The token that every answer begins with; `None` where the model names none.
        stack: Its blocks; `None` where they were not found.
        norm: Path of the norm after them, if there is one.
        length: Positions that a picture had in the recorded run, of an encoder of pictures.
    """

    path: str
    space: str
    start: int | None
    stack: Stack | None = None
    norm: str = ""
    length: int = 0

    @property
    def prefix(self) -> str:
        """What its points' names start with."""
        return f"{self.space}."

    def points(self) -> Iterator[Point]:
        """Its points, in the order in which they are computed."""
        if self.stack is None:
            return
        width = self.stack.size.d_model
        batch, axis = ("batch", "d_model") if self.space == "encoder" else ("image", "d_vision")
        axes, sizes = (batch, "pos", axis), (None, None, width)
        blocks = list(self.stack.points())
        first = blocks[0].site
        name = "hook_merged" if self.space == "encoder" else "hook_embed"
        doc = "What the encoder's first block reads: embeddings, pictures in their places"
        yield Point(self.prefix + name, axes, sizes, doc, first, self.space)
        yield from blocks
        if self.norm:
            yield Point(f"{self.prefix}ln_final.hook_normalized", axes, sizes,
                        "What the decoder's cross-attention reads: the encoder's output",
                        OutputSite(self.norm), self.space)  # fmt: skip

    def missing(self) -> dict[str, str]:
        """What it lacks: glob -> reason."""
        if self.stack is None:
            return {f"{self.prefix}*": NO_STREAM}
        lacks = self.stack.missing()
        if not self.norm:
            why = "no norm stands after its last block; hook_resid_post of it is its output."
            lacks[f"{self.prefix}ln_final.hook_normalized"] = why
        return lacks


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether a model answers in another sequence than the one that it is asked in."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def reads_text(model: nn.Module) -> bool:
    """Whether the encoder of an encoder-decoder reads tokens."""
    takes = inspect.signature(model.get_encoder().forward).parameters
    return "input_ids" in takes or "inputs_embeds" in takes


def start_token(model: nn.Module) -> int | None:
    """The token with which every answer of an encoder-decoder begins, as `generate` finds it."""
    text = model.config.get_text_config(decoder=True)
    for config in (getattr(model, "generation_config", None), model.config, text):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if isinstance(found := config_value(config, name), int):
                return found
    return None


@torch.no_grad()
def record_answer(model: nn.Module, ids: Tensor, device: torch.device) -> Recording:
    """Runs an encoder-decoder on a few tokens; nothing is left behind.

    Args:
        model: The model.
        ids: What its decoder reads, `[1, pos]`.
        device: Where it computes.

    Raises:
        ModelError: It does not run on what it may be asked with.
    """
    if "bbox" in inspect.signature(model.forward).parameters:
        raise ModelError(
            f"{type(model).__name__} reads where words stand on a page, and puts patches of the "
            "page after them, at positions that no token of the prompt stands for."
        )
    first: Exception | None = None
    for asked in _asked(model, ids, device):

        def run(asked: dict[str, Tensor] = asked) -> Any:
            return model(decoder_input_ids=ids, use_cache=False, return_dict=True, **asked)

        try:
            found, out = record(model, run)
        except Exception as error:  # noqa: BLE001  whatever a model may raise on another form
            first = first or error
            continue
        found.logits = getattr(out, "logits", None)
        return found
    raise ModelError(
        f"{type(model).__name__} does not run on a few tokens, so its parts cannot be found: "
        f"{type(first).__name__}: {str(first)[:200]}"
    ) from first


def _asked(model: nn.Module, ids: Tensor, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """What its encoder may be given: tokens, or a small picture where it reads no text."""
    takes = inspect.signature(model.forward).parameters
    if reads_text(model):
        read = ids[:, [0] * (N_READ - ids.shape[1]) + [*range(ids.shape[1])]]
        yield {"input_ids": read, "attention_mask": torch.ones_like(read)}
        return
    config = _vision_config(model.config)
    dtype = next(model.parameters()).dtype
    source = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.rand(shape, generator=source).to(device, dtype)

    patch = _side(getattr(config, "patch_size", None)) or 16
    channels = getattr(config, "num_channels", None) or 3
    if "flattened_patches" in takes:
        cells = torch.cartesian_prod(torch.arange(_SIDE), torch.arange(_SIDE)).to(device, dtype)
        width = getattr(config, "patch_embed_hidden_size", None) or patch**2 * channels
        for wide in dict.fromkeys((patch**2 * channels, width)):
            yield {"flattened_patches": torch.cat([cells + 1, noise(_SIDE**2, wide)], -1)[None]}
    whole = _side(getattr(config, "image_size", None))
    for side in dict.fromkeys(s for s in (whole, _SIDE * patch) if s):
        yield {"pixel_values": noise(1, channels, side, side)}


def _vision_config(config: Any) -> Any:
    for name in ("vision_config", "encoder"):
        if (found := getattr(config, name, None)) is not None:
            return found
    return config


def _side(size: Any) -> int | None:
    size = size[0] if isinstance(size, list | tuple) and size else size
    return size if isinstance(size, int) else None


def bare_encoder(model: nn.Module, path: str) -> Encoder:
    """What is known of an encoder without running it."""
    return Encoder(path, "encoder" if reads_text(model) else "vision", start_token(model))


def found_encoder(model: nn.Module, recording: Recording, path: str) -> Encoder:
    """What a recorded run shows of an encoder.

    Args:
        model: The model.
        recording: The run.
        path: The encoder's path.
    """
    encoder = bare_encoder(model, path)
    space = encoder.space
    lists = [
        p for p, m in model.named_modules()
        if isinstance(m, nn.ModuleList) and len(m) and (p.startswith(f"{path}.") or not path)
        and _passes_on(recording, p, len(m), N_READ if space == "encoder" else None)
    ]  # fmt: skip
    lists = [p for p in lists if not any(p.startswith(f"{o}.") for o in lists)]
    if len(lists) != 1:
        return encoder
    blocks = submodule(model, lists[0])
    names = [f"{lists[0]}.{i}" for i in range(len(blocks))]
    ends = [recording.calls[n].gave for n in names]
    keys = [_stream_key(recording, n) for n in names]
    entering = [recording.calls[n].given[key] for n, key in zip(names, keys, strict=True)]
    config = _config_of(model, path)
    described = [
        describe_block(block, name, x, recording, activation_of(config), 1.0)
        for block, name, x in zip(blocks, names, entering, strict=True)
    ]
    stack = found_stack(lists[0], config, described, keys, ends[0].shape[-1])
    norm = next(
        (n for n, c in recording.inside(path) if c.argument(ends[-1]) is not None
         and not f"{path}.{n}".startswith(lists[0]) and c.gave is not None
         and c.gave.shape == ends[-1].shape), "",
    )  # fmt: skip
    return replace(
        encoder,
        stack=replace(stack, prefix=encoder.prefix, space=space),
        norm=f"{path}.{norm}" if norm else "",
        length=ends[0].shape[1] if space == "vision" else 0,
    )


def _config_of(model: nn.Module, path: str) -> Any:
    """The config of the encoder's text model, for what no block shows."""
    config = getattr(submodule(model, path), "config", model.config)
    return config.get_text_config(encoder=True) if hasattr(config, "get_text_config") else config


def _stream_key(recording: Recording, block: str) -> int | str:
    call = recording.calls[block]
    return next(k for k, x in call.given.items() if x.shape == call.gave.shape)


def _passes_on(recording: Recording, path: str, n: int, positions: int | None) -> bool:
    """Whether the modules of a list pass a stream on, of so many positions."""
    calls = [recording.calls.get(f"{path}.{i}") for i in range(n)]
    if any(c is None or c.gave is None or c.gave.dim() != 3 for c in calls):
        return False
    if positions is not None and calls[0].gave.shape[1] != positions:
        return False
    if not all(any(x.shape == c.gave.shape for x in c.given.values()) for c in calls):
        return False
    return all(
        calls[i].argument(calls[i - 1].gave) is not None for i in range(1, n)
    ) and len({c.gave.shape for c in calls}) == 1  # fmt: skip
