"""One plain run, recorded so that variants of it need not start from nothing.

A change at layer l, position p of a causal model cannot reach earlier layers or earlier positions.
So a variant needs, of the plain run, what enters layer l from position p on, and the keys and
values of the positions before; everything else about it is new. Where the model's masks let
earlier positions see later ones (within a picture, say), p is the earliest one that is reached.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vlm_lens.errors import VLMLensError
from vlm_lens.families import Architecture
from vlm_lens.points.sites import submodule

if TYPE_CHECKING:
    from vlm_lens.engine.tower import TowerReplay

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
        logits: `[rows, pos, d_vocab]`, of the last positions only if so asked.
        added: Block -> what the model adds to the stream before it, `[rows, pos, d_model]`.
        reached: For each position, the earliest one that a change there or later can reach.
        next_positions: For each row, the position that rotary embeddings give the next token.
        tower: What its tower computed, if that was asked.
        no_tower: Why there is none, if it was asked.
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
    added: dict[int, Tensor] = field(default_factory=dict)
    reached: list[int] = field(default_factory=list)
    next_positions: Tensor | None = None
    tower: TowerReplay | None = None
    no_tower: str = ""

    @property
    def n_layers(self) -> int:
        """How many blocks the language model has."""
        return self.arch.decoder.stack.size.n_layers

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
def record(
    model: nn.Module,
    arch: Architecture,
    inputs: Mapping[str, Tensor],
    *,
    adds: bool = False,
    n_last: int | None = None,
    tower: TowerReplay | None = None,
) -> Baseline:
    """Runs the model once and keeps what variants need.

    Args:
        model: The Hugging Face model.
        arch: Its parts.
        inputs: The prompt.
        adds: Whether the model adds something to the stream between blocks that text cannot change.
        n_last: How many of the last positions' logits are needed at the least; all by default.
        tower: The prompt's tower, whose blocks' results are then kept too.

    Raises:
        NotReplayable: The blocks are called in a way that is not understood, or keep their keys and
            values elsewhere.
    """
    stack = arch.decoder.stack
    blocks = submodule(model, stack.path)
    calls: list[dict[str, Any]] = []
    entered: list[Tensor] = []
    left: list[Tensor] = []  # what the last block that ran gave
    added: dict[int, Tensor] = {}
    positions: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        # the class's own, because other libraries put wrappers of other forms on the instance
        signature = inspect.signature(type(module).forward)
        bound = signature.bind(module, *args, **kwargs).arguments
        named = {**bound.pop("kwargs", {}), **bound}
        itself, first, *_ = signature.parameters
        del named[itself]
        entered.append(named.pop(first))
        before = left[-1].to(entered[-1].device) if left else entered[-1]
        if before is not entered[-1] and not torch.equal(before, entered[-1]):
            added[len(calls)] = entered[-1] - before
        calls.append({k: v for k, v in named.items() if not k.startswith("past_key_value")})

    def keep_output(module: nn.Module, args: tuple, output: Any) -> None:
        # a copy where the model may write into it before the next block
        output = output if isinstance(output, Tensor) else output[0]
        left[:] = [output.clone() if adds else output]

    def keep_positions(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if isinstance(kwargs.get("position_ids"), Tensor):
            positions.append(kwargs["position_ids"])

    cache = DynamicCache()  # without a config: every layer keeps all its keys, sliding ones too
    handles = [
        b.register_forward_pre_hook(keep, prepend=True, with_kwargs=True) for b in list(blocks)
    ]
    handles += [b.register_forward_hook(keep_output, prepend=True) for b in list(blocks)]
    parent = submodule(model, stack.path.rpartition(".")[0])
    handles.append(parent.register_forward_pre_hook(keep_positions, prepend=True, with_kwargs=True))
    for block in tower.blocks if tower else ():
        handles.append(
            block.register_forward_hook(
                lambda m, args, out: tower.outputs.append(out), prepend=True
            )
        )
    fewer = n_last is not None and "logits_to_keep" in inspect.signature(model.forward).parameters
    options = {"logits_to_keep": n_last} if fewer else {}
    try:
        logits = model(
            **inputs, past_key_values=cache, use_cache=True, return_dict=True, **options
        ).logits
    finally:
        for handle in handles:
            handle.remove()
    n_rows, length = inputs["input_ids"].shape
    if len(calls) != stack.size.n_layers or len(cache.layers) != stack.size.n_layers:
        raise NotReplayable(
            "the model does not run each of its blocks once, with a cache of its own"
        )
    if added and not adds:
        raise NotReplayable("the model changes the residual stream between its blocks")
    keys = [layer.keys for layer in cache.layers]
    if any(k.shape[-2] != length for k in keys):
        raise NotReplayable("some blocks do not keep the keys of every position")
    baseline = Baseline(
        model, arch, length, n_rows, logits, left[-1], calls, entered, keys,
        [layer.values for layer in cache.layers], added, _reached(calls, inputs),
        _next_positions(positions, n_rows), tower,
    )  # fmt: skip
    for block, call in zip(blocks, calls, strict=True):
        attn = submodule(block, stack.parts.attn)
        if call.get("attention_mask") is None and not getattr(attn, "is_causal", True):
            raise NotReplayable("its blocks see all positions, also later ones, without a mask")
        for name, value in call.items():
            _check(name, value, length)
    if tower is not None:
        try:
            tower.check(entered[0], added)
        except NotReplayable as error:
            baseline.tower, baseline.no_tower = None, str(error)
    return baseline


def _reached(calls: list[dict[str, Any]], inputs: Mapping[str, Tensor]) -> list[int]:
    """For each position, the earliest one that a change there or later can reach, in any block."""
    length = inputs["input_ids"].shape[1]
    first = torch.arange(length)
    read = inputs.get("attention_mask")
    masks = {id(m): m for c in calls if isinstance(m := c.get("attention_mask"), Tensor)}
    for mask in masks.values():
        if mask.dim() != 4:
            continue
        seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        if read is not None:  # what padding sees is read by nobody
            seen = seen & read[:, None, :, None].bool().to(seen.device)
        sees = seen.flatten(0, 1).any(0).expand(length, -1)[:, :length]
        earliest = sees.to(torch.uint8).argmax(0).cpu()
        first = torch.where(sees.any(0).cpu(), torch.minimum(first, earliest), first)
    # a change at p changes all positions from p on, so the earliest reached by any of these counts
    least = first.flip(0).cummin(0).values.flip(0)
    while not torch.equal(least[least], least):
        least = least[least]
    return least.tolist()


def _next_positions(given: list[Tensor], n_rows: int) -> Tensor | None:
    """One more than the largest position of each row, where the model was given positions."""
    if not given:
        return None
    ids = given[0][1:] if given[0].dim() == 3 and len(given[0]) == 4 else given[0]
    ids = ids.reshape(-1, *ids.shape[-2:]).amax((0, 2)) + 1
    return ids.expand(n_rows)


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
