"""One plain run, recorded so that variants of it need not start from nothing.

A change at layer l, position p of a causal model cannot reach earlier layers or earlier positions.
So a variant needs, of the plain run, what enters layer l from position p on, and the keys and
values of the positions before; everything else about it is new.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vlm_lens.errors import VLMLensError
from vlm_lens.families.base import Architecture
from vlm_lens.sites import submodule

# Which axis of a block's arguments counts positions, and which counts rows, from the end.
_AXES = {"attention_mask": (-2, -4), "position_embeddings": (-2, -3), "position_ids": (-1, -2)}
_PLAIN = (str, int, float, bool, type(None))


class NotReplayable(VLMLensError):
    """A model or an intervention whose variants must be computed from the beginning."""


@dataclass
class Baseline:
    """What one plain run leaves for its variants.

    Attributes:
        model: The Hugging Face model.
        arch: Its parts.
        length: Positions of the prompt.
        n_rows: Rows of the prompt.
        calls: For each block, the arguments it was called with, by name.
        resid_pre: For each block, what entered it, `[rows, pos, d_model]`.
        resid_post: What left the last block, likewise.
        keys: For each block, its keys, `[rows, heads, pos, d_head]`.
        values: For each block, its values, likewise.
        logits: `[rows, pos, d_vocab]`.
    """

    model: nn.Module
    arch: Architecture
    length: int
    n_rows: int
    logits: Tensor
    resid_post: Tensor
    calls: list[dict[str, Any]] = field(default_factory=list)
    resid_pre: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def call(self, layer: int, start: int, owners: Tensor) -> dict[str, Any]:
        """The arguments of a block for the suffix from `start` on.

        Args:
            layer: The block.
            start: The first position of the suffix.
            owners: For each row of the replay, the prompt's row that it varies.
        """
        shared = self.n_rows == 1
        return {
            name: _cut(name, value, start, None if shared else owners, self.length)
            for name, value in self.calls[layer].items()
        }

    def prefix(self, layer: int, start: int, owners: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values before `start`, one row for each row of the replay."""
        both = []
        for stored in (self.keys[layer], self.values[layer]):
            stored = stored[:, :, :start]
            rows = stored.expand(len(owners), -1, -1, -1) if self.n_rows == 1 else stored[owners]
            both.append(rows)
        return both[0], both[1]


@torch.no_grad()
def record(model: nn.Module, arch: Architecture, inputs: Mapping[str, Tensor]) -> Baseline:
    """Runs the model once and keeps what variants need.

    Raises:
        NotReplayable: The blocks are called in a way that is not understood, or keep their keys and
            values elsewhere.
    """
    stack = arch.decoder.stack
    blocks = submodule(model, stack.path)
    calls: list[dict[str, Any]] = []
    entered: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        named = {**bound.pop("kwargs", {}), **bound}
        first = next(iter(inspect.signature(module.forward).parameters))
        entered.append(named.pop(first))
        calls.append({k: v for k, v in named.items() if not k.startswith("past_key_value")})

    left: list[Tensor] = []

    def keep_last(module: nn.Module, args: tuple, output: Any) -> None:
        left.append(output if isinstance(output, Tensor) else output[0])

    cache = DynamicCache()  # without a config: every layer keeps all its keys, sliding ones too
    handles = [
        b.register_forward_pre_hook(keep, prepend=True, with_kwargs=True) for b in list(blocks)
    ]
    handles.append(blocks[-1].register_forward_hook(keep_last, prepend=True))
    try:
        logits = model(**inputs, past_key_values=cache, use_cache=True, return_dict=True).logits
    finally:
        for handle in handles:
            handle.remove()
    n_rows, length = inputs["input_ids"].shape
    if len(calls) != stack.size.n_layers or len(cache.layers) != stack.size.n_layers:
        raise NotReplayable(
            "the model does not run each of its blocks once, with a cache of its own"
        )
    keys = [layer.keys for layer in cache.layers]
    if any(k.shape[-2] != length for k in keys):
        raise NotReplayable("some blocks do not keep the keys of every position")
    baseline = Baseline(
        model, arch, length, n_rows, logits, left[-1], calls, entered, keys,
        [layer.values for layer in cache.layers],
    )  # fmt: skip
    for call in calls:
        for name, value in call.items():
            _check(name, value, length)
    return baseline


def _check(name: str, value: Any, length: int) -> None:
    if isinstance(value, _PLAIN) or (name in _AXES and _is_tensor_or_pair(value)):
        if isinstance(value, Tensor) and name == "attention_mask" and value.dim() != 4:
            raise NotReplayable("this attention implementation takes masks of another form")
        return
    if isinstance(value, Tensor) and name == "cache_position":
        return
    raise NotReplayable(f"its blocks take an argument {name!r} that depends on positions unknown")


def _is_tensor_or_pair(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, tuple) and all(isinstance(v, Tensor) for v in value)
    )


def _cut(name: str, value: Any, start: int, owners: Tensor | None, length: int) -> Any:
    if name == "attention_mask" and value is None:
        return "causal"
    if isinstance(value, tuple):
        return tuple(_cut(name, v, start, owners, length) for v in value)
    if not isinstance(value, Tensor):
        return value
    if name == "cache_position":
        return value[start:]
    axis, rows = _AXES[name]
    cut = value.narrow(axis, start, value.shape[axis] - start) if value.shape[axis] > 1 else value
    if owners is not None and cut.dim() >= -rows and cut.shape[rows] > 1:
        cut = cut.index_select(cut.dim() + rows, owners)
    return cut


def causal_mask(start: int, length: int, device: torch.device) -> Tensor:
    """Which keys each position of a suffix sees, `[1, 1, suffix, length]`, True where it does."""
    query = torch.arange(start, length, device=device)[:, None]
    return (torch.arange(length, device=device)[None, :] <= query)[None, None]
