"""Variants of a run in the run itself, as further positions: one forward pass for all of them.

Where variants change little, computing them apart costs more than they do: each block is called
once for the plain run and once more for its variants. Here a variant's suffix, from the earliest
position that it changes, stands behind the prompt, from the block on in which it differs. A prompt
of five positions, A that changes the last one, B the last two from a later block on:

    positions          0 1 2 3 4 | 4 | 4A | 3B 4B
    rotary, masks as   0 1 2 3 4 | 4 | 4  | 3  4
    4A sees            0 1 2 3         4A
    4B sees            0 1 2                3B 4B
                                   control

The control is an unchanged copy of the last position: that its logits are the plain run's shows
that the model's attention goes by the masks and positions that it is given. Where it does not, or
where something else is not understood, `NotReplayable` says so, and variants are replayed as rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vlm_lens.engine.baseline import POSITION_AXES, Baseline
from vlm_lens.engine.firing import Firing
from vlm_lens.engine.hooks import HookedRun
from vlm_lens.engine.joining import CountedOp
from vlm_lens.engine.logit_head import head_error, logits_error, tolerance
from vlm_lens.engine.not_replayable import NotReplayable
from vlm_lens.engine.recorder import all_causal, check_argument, is_of_pictures
from vlm_lens.engine.replay import Replayed, ReplayVariant, planned
from vlm_lens.engine.start import Start, in_text, start_of
from vlm_lens.errors import VLMLensError
from vlm_lens.families import Architecture
from vlm_lens.ops import Op
from vlm_lens.points.sites import submodule

_ALWAYS = 64  # further positions that cost next to nothing, however short the prompt
_refused: WeakKeyDictionary[nn.Module, dict[bool, str]] = WeakKeyDictionary()


def outline(model: nn.Module, arch: Architecture, inputs: Mapping[str, Tensor]) -> Baseline:
    """What is known of a run before it is made: its length, and that changes reach onward only."""
    n_rows, length = inputs["input_ids"].shape
    nothing = torch.empty(0)
    return Baseline(model, arch, length, n_rows, nothing, nothing, reached=list(range(length)))


def fitting(
    run: Baseline, inputs: Mapping[str, Tensor], ops: Iterable[Sequence[Op]], n_last: int
) -> list[Start] | None:
    """Where variants start that can run in the run itself; `None` if one cannot, or too many are.

    Args:
        run: The outline of the run.
        inputs: The prompt.
        ops: The ops of each variant; no more of them are made than could fit.
        n_last: How many of the last positions give logits.
    """
    if _refused.get(run.model, {}).get("pixel_values" in inputs):
        return None
    attention = getattr(run.model.config, "_attn_implementation", None)
    points, n_layers = run.arch.points, run.n_layers
    if attention not in ("sdpa", "eager") or run.arch.unknown_head:
        return None
    if any(f"blocks.{layer}.attn.hook_z" not in points for layer in range(n_layers)):
        return None  # blocks that keep a state see positions in the order in which they stand
    starts: list[Start] = []
    total = n_last
    for mine in ops:
        for op in mine:
            point = points[op.point]
            inside = point.layer is not None or op.point == "hook_merged"
            if op.since is not None or "query" in point.axes or not inside:
                return None
            if not in_text(op, run):
                return None
        start = start_of(mine, run)
        total += run.length - min(start.position, run.length - n_last)
        if total > max(_ALWAYS, run.length // 2):
            return None
        starts.append(start)
    return starts


@torch.no_grad()
def run_jointly(
    run: Baseline,
    inputs: Mapping[str, Tensor],
    variants: Sequence[ReplayVariant],
    *,
    n_last: int = 1,
) -> tuple[Tensor, Replayed]:
    """Runs the prompt with its variants behind it.

    Args:
        run: The outline of the run.
        inputs: The prompt.
        variants: The variants, as `fitting` takes them.
        n_last: How many of the last positions give logits.

    Returns:
        The plain run's logits, `[rows, n_last, d_vocab]`, and the variants'.

    Raises:
        NotReplayable: The model works in a way that is not understood.
        VLMLensError: An op does not fit the activation that it is for.
    """
    try:
        return _JointRun(run, inputs, variants, n_last).run()
    except NotReplayable as error:
        why = str(error)
    except VLMLensError:
        raise
    except (RuntimeError, IndexError, TypeError, ValueError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
    _refused.setdefault(run.model, {})["pixel_values" in inputs] = why
    raise NotReplayable(why)


@dataclass(frozen=True)
class _Columns:
    """The positions of one variant behind the prompt.

    Attributes:
        first: Its first column.
        start: The position of the prompt that this is.
        layer: The block from which on it stands there; the number of blocks if none.
    """

    first: int
    start: int
    layer: int


class _JointRun:
    """See `run_jointly`."""

    def __init__(
        self,
        run: Baseline,
        inputs: Mapping[str, Tensor],
        variants: Sequence[ReplayVariant],
        n_last: int,
    ):
        self._outline, self._inputs, self._n_last = run, inputs, n_last
        length = run.length
        order = sorted(range(len(variants)), key=lambda v: variants[v].start.layer)
        first_layer = min((v.start.layer for v in variants), default=run.n_layers)
        starts = [(length - n_last, first_layer)]  # the control
        for start in (variants[v].start for v in order):
            starts.append((min(start.position, length - n_last), start.layer))
        self._columns: list[_Columns] = []
        position, whose = list(range(length)), [0] * length
        for number, (start, layer) in enumerate(starts, 1):
            self._columns.append(_Columns(len(position), start, layer))
            position += range(start, length)
            whose += [number] * (length - start)
        self._widths = [
            length + sum(length - c.start for c in self._columns if c.layer <= layer)
            for layer in range(run.n_layers + 1)
        ]  # how many positions stand in each block, and before the final norm
        self._position, self._whose = torch.tensor(position), torch.tensor(whose)
        self._begins = torch.tensor([length, *(c.start for c in self._columns)])
        ops = [
            [_moved(counted, columns) for counted in variants[v].ops]
            for v, columns in zip(order, self._columns[1:], strict=True)
        ]
        self._rank = [order.index(v) for v in range(len(variants))]
        self._handlers, self._final_handlers = planned(ops, run)
        self._variants = variants
        # of masks and rotary embeddings that blocks share, by identity: the value, and for all
        # positions
        self._grown_arguments: dict[int, tuple[Tensor | None, Tensor]] = {}
        self._positions: dict[torch.device, Tensor] = {}
        self._final: Tensor | None = None

    def run(self) -> tuple[Tensor, Replayed]:
        """Runs the model once."""
        outline, n_last = self._outline, self._n_last
        blocks = submodule(outline.model, outline.arch.decoder.stack.path)
        norm = outline.arch.final_norm(outline.model)
        hooked = HookedRun(outline.model, outline.arch.points, self._handlers)
        with hooked, ExitStack() as stack:
            for layer, block in enumerate(blocks):
                enter = partial(self._enter, hooked, layer, _parameters(type(block)))
                handle = block.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
                stack.callback(handle.remove)
            handle = norm.register_forward_pre_hook(self._leave, prepend=True)
            stack.callback(handle.remove)
            logits = outline.model(**self._inputs, use_cache=False, return_dict=True).logits
        each = 1 + len(self._columns)
        if self._final is None or logits.shape[:2] != (outline.n_rows, each * n_last):
            raise NotReplayable("its final norm or its logits take other positions")
        plain, control, *changed = logits.unflatten(1, (each, n_last)).unbind(1)
        error = head_error(outline.arch, outline.model, self._final, plain)
        if error > tolerance(logits.dtype):
            raise NotReplayable("its logits are not what its final norm and output layer give")
        if logits_error(control, plain) > tolerance(logits.dtype):
            raise NotReplayable("its attention does not go by the masks and positions it is given")
        for variant in self._variants:
            for counted in variant.ops:
                counted.counter.check()
        return plain, Replayed(torch.stack([changed[rank] for rank in self._rank]))

    def _enter(
        self, hooked: HookedRun, layer: int, names: Sequence[str], block: nn.Module,
        args: tuple, kwargs: dict[str, Any],
    ) -> tuple[tuple, dict[str, Any]]:  # fmt: skip
        """Gives a block the further positions, and masks and rotary embeddings for them."""
        width = self._widths[layer]
        named = dict(zip(names, args, strict=False)) | kwargs
        stream: Tensor = named[names[0]]
        hooked.place(offset=0, length=width, rows=self._outline.n_rows)
        if named.get("attention_mask") is None and not all_causal(block):
            raise NotReplayable("its blocks see all positions, also later ones, without a mask")
        if width == self._outline.length:
            return args, kwargs
        new = {names[0]: self._grown(stream, layer)}
        for name, value in named.items():
            if name != names[0] and not name.startswith("past_key_value"):
                new[name] = self._argument(name, value, width, stream)
        if named.get("attention_mask") is None and "attention_mask" in names:
            new["attention_mask"] = self._mask(None, width, stream)
        given = names[: len(args)]
        return tuple(new.get(n, a) for n, a in zip(given, args, strict=True)), {
            **{k: new.get(k, v) for k, v in kwargs.items()},
            **{k: v for k, v in new.items() if k not in given and k not in kwargs},
        }

    def _leave(self, norm: nn.Module, args: tuple) -> tuple:
        """Leaves the final norm those positions whose logits are asked for."""
        outline, n_last = self._outline, self._n_last
        stream = self._grown(args[0], outline.n_layers)
        point = outline.arch.points[f"blocks.{outline.n_layers - 1}.hook_resid_post"]
        for handler in self._final_handlers:
            new = handler.call(stream, Firing(point, 0))
            stream = stream if new is None else new
        length = outline.length
        ends = [length] + [c.first + length - c.start for c in self._columns]
        wanted = torch.tensor([end - n_last + i for end in ends for i in range(n_last)])
        kept = stream.index_select(1, wanted.to(stream.device))
        self._final = kept[:, :n_last]
        return (kept, *args[1:])

    def _position_on(self, device: torch.device) -> Tensor:
        """The position of the prompt that each column is, there once for all blocks."""
        if device not in self._positions:
            self._positions[device] = self._position.to(device)
        return self._positions[device]

    def _grown(self, stream: Tensor, layer: int) -> Tensor:
        """The stream with the positions of those variants that join it here."""
        width = self._widths[layer]
        if width == stream.shape[1]:
            return stream
        if stream.shape[1] != (self._widths[layer - 1] if layer else self._outline.length):
            raise NotReplayable("its stream has other positions than its prompt")
        joining = self._position_on(stream.device)[stream.shape[1] : width]
        return torch.cat([stream, stream.index_select(1, joining)], 1)

    def _argument(self, name: str, value: Any, width: int, stream: Tensor) -> Any:
        """An argument of a block for all positions that stand there."""
        if isinstance(value, tuple):
            return tuple(self._argument(name, v, width, stream) for v in value)
        check_argument(name, value)
        if not isinstance(value, Tensor) or is_of_pictures(name, value):
            return value
        if name == "attention_mask":
            return self._mask(value, width, stream)
        axis = -1 if name == "cache_position" else POSITION_AXES[name][0]
        if value.shape[axis] != self._outline.length:
            return value
        if id(value) not in self._grown_arguments:
            grown = value.index_select(value.dim() + axis, self._position_on(value.device))
            self._grown_arguments[id(value)] = value, grown  # kept, so that no id recurs
        return self._grown_arguments[id(value)][1].narrow(value.dim() + axis, 0, width)

    def _mask(self, mask: Tensor | None, width: int, stream: Tensor) -> Tensor:
        """Which keys each position sees: the model's own rule, and of variants only its own."""
        key = id(mask)
        if key not in self._grown_arguments:
            self._grown_arguments[key] = mask, self._whole_mask(mask, stream)
        return self._grown_arguments[key][1][..., :width, :width]

    def _whole_mask(self, mask: Tensor | None, stream: Tensor) -> Tensor:
        length, device = self._outline.length, stream.device
        position, whose = self._position_on(device), self._whose.to(device)
        begins = self._begins.to(device)[whose]  # from where on a position sees its own variant
        seen = whose == whose[:, None]
        seen |= (whose == 0) & (position < begins[:, None])
        if mask is None:
            return (seen & (position <= position[:, None]))[None, None]
        if mask.shape[-2:] != (length, length):
            raise NotReplayable("its masks are of another form")
        allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        real = self._inputs.get("attention_mask")
        queries = allowed if real is None else allowed & real[:, None, :, None].bool().to(device)
        if queries.triu(1).any():
            raise NotReplayable("some positions see later ones")
        grown = mask[..., position, :][..., position]
        if mask.dtype == torch.bool:
            return grown & seen
        return grown.masked_fill(~seen, torch.finfo(mask.dtype).min)


def _moved(counted: CountedOp, columns: _Columns) -> CountedOp:
    """An op at the positions of its variant."""

    def move(row: int, position: int) -> tuple[int, int]:
        inside = position >= columns.start
        return row, columns.first + position - columns.start if inside else position

    return counted.moved(move)


@cache
def _parameters(block: type[nn.Module]) -> tuple[str, ...]:
    """What a block's forward takes; the class's, as others may put wrappers on instances."""
    return tuple(inspect.signature(block.forward).parameters)[1:]
