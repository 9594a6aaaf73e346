"""Variants of a recorded run, together as rows of a batch, from where each of them differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from vlm_lens.engine.baseline import Baseline, NotReplayable, causal_mask
from vlm_lens.engine.hooks import Handler, HookedRun
from vlm_lens.engine.kernel import MEAN, Op
from vlm_lens.engine.run import Counter, op_handler
from vlm_lens.points import Point
from vlm_lens.sites import submodule


@dataclass(frozen=True)
class Start:
    """From where a variant differs from the recorded run.

    Attributes:
        layer: The first block that must be run again; `n_layers` if none must.
        position: The first position that must be run again.
    """

    layer: int
    position: int


@dataclass
class Rows:
    """Variants of all rows of a prompt, computed together.

    Attributes:
        ops: For each variant, its ops, their rows counting in the prompt.
        starts: For each variant, from where it differs.
        counters: For each variant, the counters of its ops.
    """

    ops: list[list[Op]]
    starts: list[Start]
    counters: list[list[Counter]] = field(default_factory=list)


def start_of(ops: Sequence[Op], baseline: Baseline) -> Start:
    """The first block and position that ops can change.

    Raises:
        NotReplayable: An op acts before the language model, or outside what was recorded.
    """
    n_layers = baseline.arch.decoder.stack.size.n_layers
    layer, position = n_layers, baseline.length
    for op in ops:
        point = baseline.arch.points[op.point]
        if point.space != "text" or point.name == "hook_embed":
            raise NotReplayable(f"{point.name} comes before the language model")
        if op.since is not None:
            raise NotReplayable("it acts on generated tokens")
        layer = min(layer, _layer_of(point, n_layers))
        places = list(op.positions)
        if op.kind == MEAN:
            places += op.tensors["pool"][:, 1].tolist()
        position = min([position, *places])
    return Start(layer, baseline.reached[min(position, baseline.length - 1)])


def _layer_of(point: Point, n_layers: int) -> int:
    if point.layer is not None:
        return point.layer
    return 0 if point.name == "hook_merged" else n_layers


class _SuffixCache(DynamicCache):
    """Gives each block the recorded keys and values of the prefix before the suffix's own."""

    def __init__(self, baseline: Baseline, start: int, owners: Tensor, *, keep: bool):
        super().__init__()
        self._baseline, self._start, self._owners, self._keep = baseline, start, owners, keep
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        owners = self._owners[: len(key_states)]
        before_k, before_v = self._baseline.prefix(layer_idx, self._start, owners)
        if self._keep:
            self.kept[layer_idx] = key_states, value_states
        if self._start == 0:
            return key_states, value_states
        return torch.cat([before_k, key_states], -2), torch.cat([before_v, value_states], -2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._start


@dataclass
class Replayed:
    """What a replay gives.

    Attributes:
        logits: `[variants, rows of the prompt, positions asked, d_vocab]`.
        cache: Keys and values of every row, `variants * rows` of them, if asked.
    """

    logits: Tensor
    cache: DynamicCache | None = None


@torch.no_grad()
def replay(
    baseline: Baseline, rows: Rows, *, n_last: int = 1, keep_cache: bool = False
) -> Replayed:
    """Runs variants as rows of one batch.

    At each block the rows that differ from there on join those that already do, with what entered
    the block in the recorded run.

    Args:
        baseline: The recorded run.
        rows: The variants.
        n_last: How many of the last positions give logits; all must lie in the suffix.
        keep_cache: Whether keys and values are kept, to generate on.
    """
    stack = baseline.arch.decoder.stack
    blocks, n_layers = submodule(baseline.model, stack.path), stack.size.n_layers
    start = min([s.position for s in rows.starts] + [baseline.length - n_last])
    order = sorted(range(len(rows.starts)), key=lambda v: rows.starts[v].layer)
    n, width = baseline.n_rows, baseline.length - start
    device = baseline.resid_pre[0].device
    owners = torch.arange(n, device=device).repeat(len(order))
    first = [rows.starts[v].layer for v in order for _ in range(n)]  # ascending
    cache = _SuffixCache(baseline, start, owners, keep=keep_cache)
    run = HookedRun(baseline.model, baseline.arch.points, _handlers(rows, order, n))
    hidden = baseline.resid_pre[0].new_empty((0, width, stack.size.d_model))
    with run:
        for layer in range(min(first), n_layers):
            active = sum(f <= layer for f in first)
            if active > len(hidden):
                joining = baseline.resid_pre[layer][owners[len(hidden) : active], start:]
                hidden = torch.cat([hidden.to(joining.device), joining])
            run.place(offset=start, length=width, rows=active)
            call = baseline.call(layer, start, owners[:active].to(hidden.device))
            if call.get("attention_mask") == "causal":
                call["attention_mask"] = _causal(start, baseline.length, hidden.device)
            out = blocks[layer](hidden, **call, past_key_values=cache)
            hidden = out if isinstance(out, Tensor) else out[0]
            if layer + 1 in baseline.added:
                hidden = hidden + baseline.added[layer + 1][owners[:active], start:]
        if len(hidden) < len(first):  # variants that change nothing before the final norm
            last = baseline.resid_post[owners[len(hidden) :], start:]
            hidden = torch.cat([hidden.to(last.device), last])
        logits = _logits(baseline, run, hidden, start, n_last)
    inverse = torch.tensor([order.index(v) for v in range(len(order))], device=logits.device)
    logits = logits.unflatten(0, (len(order), n))[inverse]
    kept = _joined_cache(baseline, cache, start, owners, first, inverse, n) if keep_cache else None
    return Replayed(logits, kept)


def _causal(start: int, length: int, device: torch.device) -> Tensor | None:
    # without a mask sdpa takes its own causal path, which is right from position 0 only; a single
    # query sees every key
    if start == 0 or length - start == 1:
        return None
    return causal_mask(start, length, device)


def _logits(baseline: Baseline, run: HookedRun, hidden: Tensor, start: int, n_last: int) -> Tensor:
    if not run.watches("ln_final.hook_normalized", "hook_logits"):
        hidden, start = hidden[:, -n_last:], baseline.length - n_last
    run.place(offset=start, length=hidden.shape[1], rows=len(hidden))
    normed = submodule(baseline.model, baseline.arch.decoder.norm)(hidden)
    logits = baseline.arch.logits(baseline.model, normed)
    return run.pass_through("hook_logits", logits)[:, -n_last:]


def _handlers(rows: Rows, order: Sequence[int], n: int) -> dict[str, list[Handler]]:
    """The variants' ops with their rows counted in the replay's batch.

    Ops of different variants at one point touch different rows, so they act as one: the first op of
    every variant there, then the second of every variant, and so on.
    """
    turns: dict[tuple, list[tuple[Op, Counter]]] = {}
    for slot, variant in enumerate(order):
        seen: dict[str, int] = {}
        mine = list(zip(rows.ops[variant], rows.counters[variant], strict=True))
        # what enters the first block is the language model's input, and that point fires first
        mine.sort(key=lambda pair: pair[0].point != "hook_merged")
        for op, counter in mine:
            name = "blocks.0.hook_resid_pre" if op.point == "hook_merged" else op.point
            moved = replace(op, point=name, rows=tuple(r + slot * n for r in op.rows))
            if op.kind == MEAN:
                pool = op.tensors["pool"] + torch.tensor([slot * n, 0])
                moved = replace(moved, tensors={"pool": pool})
            turn = seen[name] = seen.get(name, -1) + 1
            value = op.tensors.get("value")
            form = None if value is None else tuple(value.shape[1:])
            turns.setdefault((turn, name, op.kind, op.heads, form), []).append((moved, counter))
    handlers: dict[str, list[Handler]] = {}
    for (_, name, *_), acting in sorted(turns.items(), key=lambda item: item[0][0]):
        joined = _joined([op for op, _ in acting])
        counter = _Counters([c for _, c in acting])
        handlers.setdefault(name, []).append(op_handler(joined, counter))
    return handlers


@dataclass
class _Counters:
    """Several counters that act as one."""

    each: list[Counter]
    total: int = 0

    @property
    def written(self) -> int:
        return self.total

    @written.setter
    def written(self, value: int) -> None:
        for counter in self.each:
            counter.written += value - self.total
        self.total = value


def _joined(ops: Sequence[Op]) -> Op:
    """Ops of one kind at one point, on different rows, as one op."""
    if len(ops) == 1:
        return ops[0]
    rows = tuple(r for op in ops for r in op.rows)
    positions = tuple(p for op in ops for p in op.positions)
    if ops[0].kind == MEAN:
        tensors = {"pool": torch.cat([op.tensors["pool"] for op in ops])}
    else:
        values = [v.expand(len(op.rows), *v.shape[1:]) for op in ops for v in [op.tensors["value"]]]
        tensors = {"value": torch.cat(values)}
    return replace(ops[0], rows=rows, positions=positions, tensors=tensors)


def _joined_cache(
    baseline: Baseline,
    cache: _SuffixCache,
    start: int,
    owners: Tensor,
    first: Sequence[int],
    inverse: Tensor,
    n: int,
) -> DynamicCache:
    """Keys and values of the whole prompt for every row, in the order of the variants."""
    joined = DynamicCache()
    rows = (inverse[:, None] * n + torch.arange(n, device=inverse.device)).flatten()
    for layer in range(len(baseline.keys)):
        before = baseline.prefix(layer, start, owners)
        active = sum(f <= layer for f in first)
        parts = []
        for i, stored in enumerate((baseline.keys[layer], baseline.values[layer])):
            suffix = stored[owners[active:], :, start:]
            if layer in cache.kept:
                suffix = torch.cat([cache.kept[layer][i], suffix])
            parts.append(torch.cat([before[i], suffix], -2)[rows])
        joined.update(parts[0], parts[1], layer)
    return joined
