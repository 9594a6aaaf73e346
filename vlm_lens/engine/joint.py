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
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vlm_lens.engine.baseline import Baseline
from vlm_lens.engine.firing import Firing
from vlm_lens.engine.further import Columns, FurtherPositions
from vlm_lens.engine.hooks import HookedRun
from vlm_lens.engine.joining import CountedOp, joined_handlers
from vlm_lens.engine.logit_head import logits_error, tolerance
from vlm_lens.engine.not_replayable import NotReplayable
from vlm_lens.engine.recorder import all_causal
from vlm_lens.engine.replay import Replayed, ReplayVariant, planned
from vlm_lens.engine.start import Start, in_text, served, start_of
from vlm_lens.errors import VLMLensError
from vlm_lens.families import Architecture
from vlm_lens.ops import SET, Op
from vlm_lens.points.point import Point
from vlm_lens.points.sites import InputSite, submodule

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
        NotReplayable: The model works in a way that is not understood, or memory is short.
        VLMLensError: An op does not fit the activation that it is for.
    """
    try:
        return _JointRun(run, inputs, variants, n_last).run()
    except NotReplayable as error:
        why = str(error)
    except VLMLensError:
        raise
    except torch.OutOfMemoryError as error:  # of these variants: fewer fit, as rows in chunks
        raise NotReplayable(str(error)) from None
    except (RuntimeError, IndexError, TypeError, ValueError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
    _refused.setdefault(run.model, {})["pixel_values" in inputs] = why
    raise NotReplayable(why)


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
        length, self._variants = run.length, variants
        self._order = sorted(range(len(variants)), key=lambda v: variants[v].start.layer)
        starts = [variants[v].start for v in self._order]
        first_layer = starts[0].layer if starts else run.n_layers
        places = [(length - n_last, first_layer)]  # the control
        places += [(min(start.position, length - n_last), start.layer) for start in starts]
        self._further = FurtherPositions(run, inputs.get("attention_mask"), places)
        ops = [
            [_moved(counted, columns) for counted in variants[v].ops]
            for v, columns in zip(self._order, self._further.columns[1:], strict=True)
        ]
        self._written = _WrittenColumns(run, self._further, ops)
        self._handlers, final = planned(ops, run)
        self._entry = {run.n_layers: final}  # block -> handlers of the stream that enters it
        for name in [n for n in self._handlers if n.endswith(".hook_resid_pre")]:
            if (layer := _entered(run.arch.points[name], run)) is not None:
                self._entry[layer] = self._handlers.pop(name)

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
        each = 1 + len(self._further.columns)
        if logits.shape[:2] != (outline.n_rows, each * n_last):
            raise NotReplayable("its final norm or its logits take other positions")
        by_variant = logits.unflatten(1, (each, n_last)).movedim(1, 0)
        plain, control, changed = by_variant[0], by_variant[1], by_variant[2:]
        if logits_error(control, plain) > tolerance(logits.dtype):
            raise NotReplayable("its attention does not go by the masks and positions it is given")
        for variant in self._variants:
            for counted in variant.ops:
                counted.counter.check()
        if self._order != sorted(self._order):
            given = torch.tensor(self._order).argsort()
            changed = changed[given.to(changed.device)]
        return plain, Replayed(changed)

    def _enter(
        self, hooked: HookedRun, layer: int, names: Sequence[str], block: nn.Module,
        args: tuple, kwargs: dict[str, Any],
    ) -> tuple[tuple, dict[str, Any]] | None:  # fmt: skip
        """Gives a block the further positions, and masks and rotary embeddings for them."""
        width = self._further.widths[layer]
        named = dict(zip(names, args, strict=False)) | kwargs
        stream: Tensor = named.pop(names[0])
        hooked.place(offset=0, length=width, rows=self._outline.n_rows)
        if "attention_mask" in names:
            named.setdefault("attention_mask", None)
        if named.get("attention_mask") is None and not all_causal(block):
            raise NotReplayable("its blocks see all positions, also later ones, without a mask")
        if width == self._outline.length:
            return None
        new = self._further.arguments(named, width, stream)
        new[names[0]] = self._grown(stream, layer)
        given = names[: len(args)]
        return tuple(new.pop(n, a) for n, a in zip(given, args, strict=True)), kwargs | new

    def _leave(self, norm: nn.Module, args: tuple) -> tuple:
        """Leaves the final norm those positions whose logits are asked for."""
        length, n_last = self._outline.length, self._n_last
        stream = self._grown(args[0], self._outline.n_layers)
        ends = [length] + [c.first + length - c.start for c in self._further.columns]
        wanted = torch.tensor([end - n_last + i for end in ends for i in range(n_last)])
        return (stream.index_select(1, wanted.to(stream.device)), *args[1:])

    def _grown(self, stream: Tensor, layer: int) -> Tensor:
        """The stream that enters a block, with the positions of those variants that join it."""
        widths, n_before = self._further.widths, stream.shape[1]
        if n_before != (widths[layer - 1] if layer else self._outline.length):
            raise NotReplayable("its stream has other positions than its prompt")
        if joining := self._written.joining(stream, layer):
            stream = torch.cat([stream, *joining], 1)
        for handler in self._entry.get(layer, ()):
            name = f"blocks.{max(layer - 1, 0)}.hook_resid_post"
            new = handler.call(stream, Firing(self._outline.arch.points[name], 0))
            stream = stream if new is None else new
        return stream


class _WrittenColumns:
    """What stands at the columns that join a block: a copy of the prompt's, or what is written.

    Where the first thing that a variant does is to replace the stream at all of its positions,
    these are made for all blocks together, before the first of them joins.

    Args:
        run: The outline of the run.
        further: The columns.
        ops: For each variant, its ops at its columns; those that are served here are taken out.
    """

    def __init__(self, run: Baseline, further: FurtherPositions, ops: Sequence[list[CountedOp]]):
        self._run, self._further = run, further
        written, apart = [], [False]  # the control is a copy
        for mine, columns in zip(ops, further.columns[1:], strict=True):
            first = _overwrites(mine, columns, run)
            apart.append(first is not None)
            if first is not None:
                mine.remove(first)
                written.append([first.at_point("blocks.*.hook_resid_pre")])
        self._handlers = [h for made in joined_handlers(written).values() for h in made]
        self._values: Tensor | None = None
        # block -> stretches of columns, and whether they are written
        self._stretches: dict[int, list[tuple[int, int, bool]]] = {}
        for columns, is_written in zip(further.columns, apart, strict=True):
            mine = self._stretches.setdefault(columns.layer, [])
            end = columns.first + run.length - columns.start
            if mine and mine[-1][2] == is_written:
                mine[-1] = (mine[-1][0], end, is_written)
            else:
                mine.append((columns.first, end, is_written))

    def joining(self, stream: Tensor, layer: int) -> list[Tensor]:
        """What joins the stream before a block, `[rows, some positions, d_model]` each."""
        length, position = self._run.length, self._further.positions(stream.device)
        return [
            self._all(stream)[:, first - length : end - length]
            if is_written
            else stream.index_select(1, position[first:end])
            for first, end, is_written in self._stretches.get(layer, ())
        ]

    def _all(self, stream: Tensor) -> Tensor:
        """What is written, `[rows, columns, d_model]`."""
        length, total = self._run.length, self._further.widths[-1]
        if self._values is None:
            point = self._run.arch.points["blocks.0.hook_resid_pre"]
            values = stream.new_zeros(len(stream), total - length, stream.shape[-1])
            for handler in self._handlers:
                new = handler.call(values, Firing(point, length))
                values = values if new is None else new
            self._values = values
        if self._values.device != stream.device:
            self._values = self._values.to(stream.device)
        return self._values


def _overwrites(ops: Sequence[CountedOp], columns: Columns, run: Baseline) -> CountedOp | None:
    """The op that comes first at the block where a variant joins, if it replaces all there is."""
    entry = None if columns.layer == run.n_layers else f"blocks.{columns.layer}.hook_resid_pre"
    there = [(where.stage, c) for c in ops if (where := served(c.op.point, run)).point == entry]
    if not there or (entry and _entered(run.arch.points[entry], run) is None):
        return None
    op = (first := min(there, key=lambda pair: pair[0])[1]).op
    if op.kind != SET or op.heads is not None:
        return None
    cells = set(zip(op.rows, op.positions, strict=True))
    return first if len(cells) == run.n_rows * (run.length - columns.start) else None


def _entered(point: Point, run: Baseline) -> int | None:
    """The block whose input a point is, as it stands there; `None` if it is another's."""
    site, path = point.site, f"{run.arch.decoder.stack.path}.{point.layer}"
    here = isinstance(site, InputSite) and site.module == path and site.view is None
    return point.layer if here and point.space == "text" else None


def _moved(counted: CountedOp, columns: Columns) -> CountedOp:
    """An op at the positions of its variant."""

    def move(row: int, position: int) -> tuple[int, int]:
        inside = position >= columns.start
        return row, columns.first + position - columns.start if inside else position

    return counted.moved(move)


@cache
def _parameters(block: type[nn.Module]) -> tuple[str, ...]:
    """What a block's forward takes; the class's, as others may put wrappers on instances."""
    return tuple(inspect.signature(block.forward).parameters)[1:]
