"""Records one plain run, so that variants of it need not start from nothing."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vlm_lens.engine.baseline import POSITION_AXES, Baseline
from vlm_lens.engine.logit_head import head_error, tolerance
from vlm_lens.engine.not_replayable import NotReplayable
from vlm_lens.families import Architecture
from vlm_lens.points.sites import submodule

if TYPE_CHECKING:
    from vlm_lens.engine.tower import TowerReplay

_PLAIN = (str, int, float, bool, type(None))
_causal: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # asked of every block each run


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
    if arch.unknown_head:
        raise NotReplayable(arch.unknown_head)
    fewer = n_last is not None and "logits_to_keep" in inspect.signature(model.forward).parameters
    options = {"logits_to_keep": n_last} if fewer else {}
    cache = DynamicCache()  # without a config: every layer keeps all its keys, sliding ones too
    with ExitStack() as stack:
        recorder = stack.enter_context(Recorder(model, arch, adds=adds))
        if tower is not None:
            stack.enter_context(tower.recording())
        try:
            logits = model(
                **inputs, past_key_values=cache, use_cache=True, return_dict=True, **options
            ).logits
        except (AttributeError, IndexError) as error:  # state-space and linear-attention blocks
            raise NotReplayable("some blocks keep a state, not keys and values") from error
        except (TypeError, ValueError, NotImplementedError) as error:
            why = f"the model does not run with a plain cache of keys and values ({error})"
            raise NotReplayable(why) from error
    baseline = recorder.baseline(inputs, logits, cache)
    error = head_error(arch, model, baseline.resid_post[:, -1:], logits[:, -1:])
    if error > tolerance(logits.dtype):
        raise NotReplayable(
            "its logits are not what its final norm and output layer give "
            f"(off by {error:.2g} of their scale)"
        )
    if tower is not None:
        try:
            tower.check(baseline.resid_pre[0], baseline.added)
            baseline.tower = tower
        except NotReplayable as error:
            baseline.no_tower = str(error)
    return baseline


class Recorder:
    """A context in which one forward pass leaves what its blocks were given and what they gave.

    Args:
        model: The Hugging Face model.
        arch: Its parts.
        adds: Whether the model adds something to the stream between blocks.
    """

    def __init__(self, model: nn.Module, arch: Architecture, *, adds: bool):
        self._model, self._arch, self._adds = model, arch, adds
        self._blocks = list(submodule(model, arch.decoder.stack.path))
        self._calls: list[dict[str, Any]] = []
        self._resid_pre: list[Tensor] = []
        self._resid_post: Tensor | None = None  # of the last block that ran
        self._added: dict[int, Tensor] = {}
        self._position_ids: Tensor | None = None
        self._hooks = ExitStack()

    def __enter__(self) -> Self:
        def hook(register: Any, function: Any, **options: Any) -> None:
            self._hooks.callback(register(function, prepend=True, **options).remove)

        for block in self._blocks:
            hook(block.register_forward_pre_hook, self._on_entry, with_kwargs=True)
            hook(block.register_forward_hook, self._on_exit)
        text_model = submodule(self._model, self._arch.decoder.stack.path.rpartition(".")[0])
        hook(text_model.register_forward_pre_hook, self._on_text_model, with_kwargs=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self._hooks.close()

    def _on_text_model(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._position_ids is None and isinstance(kwargs.get("position_ids"), Tensor):
            self._position_ids = kwargs["position_ids"]

    def _on_entry(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        # the class's own, because other libraries put wrappers of other forms on the instance
        signature = inspect.signature(type(block).forward)
        bound = signature.bind(block, *args, **kwargs).arguments
        named = {**bound.pop("kwargs", {}), **bound}
        itself, stream, *_ = signature.parameters
        del named[itself]
        resid = named.pop(stream)
        if self._resid_post is not None:
            before = self._resid_post.to(resid.device)
            if before is not resid and not torch.equal(before, resid):
                self._added[len(self._calls)] = resid - before
        self._resid_pre.append(resid)
        self._calls.append({k: v for k, v in named.items() if not k.startswith("past_key_value")})

    def _on_exit(self, block: nn.Module, args: tuple, output: Any) -> None:
        resid = output if isinstance(output, Tensor) else output[0]
        # a copy where the model may write into it before the next block
        self._resid_post = resid.clone() if self._adds else resid

    def baseline(self, inputs: Mapping[str, Tensor], logits: Tensor, cache: Any) -> Baseline:
        """What the forward pass left.

        Args:
            inputs: What the model was given.
            logits: What it returned.
            cache: The cache that it filled.

        Raises:
            NotReplayable: The model works in a way that is not understood.
        """
        stack = self._arch.decoder.stack
        n_rows, length = inputs["input_ids"].shape
        if len(self._calls) != stack.size.n_layers or len(cache.layers) != stack.size.n_layers:
            raise NotReplayable(
                "the model does not run each of its blocks once, with a cache of its own"
            )
        if self._added and not self._adds:
            raise NotReplayable("the model changes the residual stream between its blocks")
        keys = [getattr(layer, "keys", None) for layer in cache.layers]
        if any(k is None or k.dim() != 4 or k.shape[-2] != length for k in keys):
            raise NotReplayable("some blocks do not keep the keys of every position")
        for block, call in zip(self._blocks, self._calls, strict=True):
            if call.get("attention_mask") is None and not all_causal(block):
                raise NotReplayable("its blocks see all positions, also later ones, without a mask")
            for name, value in call.items():
                check_argument(name, value)
        return Baseline(
            self._model,
            self._arch,
            length,
            n_rows,
            logits,
            self._resid_post,
            self._calls,
            self._resid_pre,
            keys,
            [layer.values for layer in cache.layers],
            self._added,
            _reached(self._calls, inputs),
            _next_positions(self._position_ids, n_rows),
        )


def all_causal(block: nn.Module) -> bool:
    """Whether a block's attention is causal where it is given no mask."""
    if block not in _causal:
        _causal[block] = all(getattr(module, "is_causal", True) for module in block.modules())
    return _causal[block]


def check_argument(name: str, value: Any) -> None:
    """Refuses an argument of a block that a suffix could not be given its part of."""
    if isinstance(value, _PLAIN) or is_of_pictures(name, value):
        return
    if name == "cache_position" and isinstance(value, Tensor):
        return
    if name not in POSITION_AXES or not _is_tensor_or_tuple(value):
        raise NotReplayable(
            f"its blocks take an argument {name!r} that depends on positions unknown"
        )
    if name == "attention_mask" and isinstance(value, Tensor) and value.dim() != 4:
        raise NotReplayable("this attention implementation takes masks of another form")


def is_of_pictures(name: str, value: Any) -> bool:
    """Whether it is what the whole model read pictures from, which blocks pass on and ignore."""
    return name.startswith("image_") and isinstance(value, Tensor) and value.dim() == 2


def _is_tensor_or_tuple(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, tuple) and all(isinstance(v, Tensor) for v in value)
    )


def _reached(calls: list[dict[str, Any]], inputs: Mapping[str, Tensor]) -> list[int]:
    """For each position, the earliest one that a change there or later can reach, in any block."""
    length = inputs["input_ids"].shape[1]
    first = torch.arange(length)
    real = inputs.get("attention_mask")
    masks = {id(m): m for c in calls if isinstance(m := c.get("attention_mask"), Tensor)}
    for mask in masks.values():
        if mask.dim() != 4:
            continue
        seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        if real is not None:  # what padding sees is read by nobody
            seen = seen & real[:, None, :, None].bool().to(seen.device)
        sees = seen.flatten(0, 1).any(0).expand(length, -1)[:, :length]
        earliest = sees.to(torch.uint8).argmax(0).cpu()
        first = torch.where(sees.any(0).cpu(), torch.minimum(first, earliest), first)
    # a change at p changes all positions from p on, so the earliest reached by any of these counts
    least = first.flip(0).cummin(0).values.flip(0)
    while not torch.equal(least[least], least):
        least = least[least]
    return least.tolist()


def _next_positions(position_ids: Tensor | None, n_rows: int) -> Tensor | None:
    """One more than the largest position of each row, where the model was given positions."""
    if position_ids is None:
        return None
    # multimodal rotary embeddings: [text, time, height, width] or the last three
    several = position_ids.dim() == 3 and len(position_ids) == 4
    ids = position_ids[1:] if several else position_ids
    ids = ids.reshape(-1, *ids.shape[-2:]).amax((0, 2)) + 1
    return ids.expand(n_rows)
