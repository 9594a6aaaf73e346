"""Variants of a recorded run, together as rows of a batch, from where each of them differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from vlm_lens.engine.baseline import Baseline, NotReplayable, causal_mask
from vlm_lens.engine.handlers import Counter
from vlm_lens.engine.hooks import Firing, Handler, HookedRun
from vlm_lens.engine.joining import Counted, joined_handlers
from vlm_lens.engine.tower import PicturePart, Repictured
from vlm_lens.ops import MEAN, Op
from vlm_lens.points.sites import submodule

_LAST = "what leaves the last block"  # stands among handlers for the input of the final norm
Places = Mapping[str, Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Start:
    """From where a variant differs from the recorded run.

    Attributes:
        layer: The first block that must be run again; `n_layers` if none must.
        position: The first position that must be run again.
        part: What it does before the language model, if anything.
    """

    layer: int
    position: int
    part: PicturePart | None = None


@dataclass
class Rows:
    """Variants of all rows of a prompt, computed together.

    Attributes:
        ops: For each variant, its ops in the language model, their rows counting in the prompt.
        starts: For each variant, from where it differs.
        counters: For each variant, the counters of its ops.
        pictures: For each variant, what it makes of the pictures that it touches.
    """

    ops: list[list[Op]]
    starts: list[Start]
    counters: list[list[Counter]] = field(default_factory=list)
    pictures: list[Repictured | None] = field(default_factory=list)


def in_text(op: Op, baseline: Baseline) -> bool:
    """Whether an op acts in the language model."""
    return baseline.arch.points[op.point].space == "text"


def start_of(ops: Sequence[Op], baseline: Baseline) -> Start:
    """The first block and position that ops can change.

    Raises:
        NotReplayable: An op acts on what was not recorded.
    """
    layer, position, part = baseline.n_layers, baseline.length, None
    before = [op for op in ops if not in_text(op, baseline)]
    for op in ops:
        if op.point == "hook_embed":
            raise NotReplayable("hook_embed comes before the language model")
        if op.since is not None:
            raise NotReplayable("it acts on generated tokens")
        if not in_text(op, baseline):
            continue
        layer = min(layer, _layer_of(op.point, baseline))
        places = list(op.positions)
        if op.kind == MEAN:
            places += op.tensors["pool"][:, 1].tolist()
        position = min([position, *places])
    if before:
        if baseline.tower is None:
            reason = baseline.no_tower or "the tower was not recorded"
            raise NotReplayable(f"{before[0].point} comes before the language model: {reason}")
        part, layer = baseline.tower.part_of(before), 0
        placed = baseline.tower.pictures.placed
        position = min([position, *(placed[n].places[0] for n in part.pictures)])
    return Start(layer, baseline.reached[min(position, baseline.length - 1)], part)


def _moment(name: str, baseline: Baseline) -> tuple[str, int]:
    """The point at which another is served in a replay, and whether before (0) or with it (1).

    What leaves a block is what enters the next one, unless the model adds something between. So a
    variant that changes it need not run that block.
    """
    if name == "hook_merged":
        return "blocks.0.hook_resid_pre", 0
    point = baseline.arch.points[name]
    if name != f"blocks.{point.layer}.hook_resid_post" or point.layer + 1 in baseline.added:
        return name, 1
    after = point.layer + 1
    return (_LAST, 0) if after == baseline.n_layers else (f"blocks.{after}.hook_resid_pre", 0)


def _layer_of(name: str, baseline: Baseline) -> int:
    served, _ = _moment(name, baseline)
    layer = None if served == _LAST else baseline.arch.points[served].layer
    return baseline.n_layers if layer is None else layer


class _SuffixCache(DynamicCache):
    """Gives each block the recorded keys and values of the prefix before the suffix's own."""

    def __init__(self, baseline: Baseline, start: int, owners: Tensor, *, keep: bool):
        super().__init__()
        self._baseline, self._start, self._owners, self._keep = baseline, start, owners, keep
        self._whole: dict[tuple, Tensor] = {}  # written anew by every block: memory is touched once
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        if self._keep:
            self.kept[layer_idx] = key_states, value_states
        if self._start == 0:
            return key_states, value_states
        owners = self._owners[: len(key_states)]
        before = self._baseline.prefix(layer_idx, self._start, owners)
        pairs = zip(("keys", "values"), before, (key_states, value_states), strict=True)
        return tuple(self._joined(*pair) for pair in pairs)

    def _joined(self, what: str, before: Tensor, own: Tensor) -> Tensor:
        form = (what, own.device, own.dtype, own.shape[1], own.shape[3])
        if form not in self._whole:
            shape = (len(self._owners), own.shape[1], self._start + own.shape[2], own.shape[3])
            self._whole[form] = own.new_empty(shape)
        whole = self._whole[form][: len(own)]
        whole[:, :, : self._start] = before
        whole[:, :, self._start :] = own
        return whole

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._start


@dataclass
class Replayed:
    """What a replay gives.

    Attributes:
        logits: `[variants, rows of the prompt, positions asked, d_vocab]`.
        cache: Keys and values of every row, `variants * rows` of them, if asked.
        read: For each variant, point name -> place in the prompt -> the activation there, for
            those places wanted that the variant can change.
    """

    logits: Tensor
    cache: DynamicCache | None = None
    read: list[dict[str, dict[tuple[int, int], Tensor]]] = field(default_factory=list)


@torch.no_grad()
def replay(
    baseline: Baseline,
    rows: Rows,
    *,
    n_last: int = 1,
    keep_cache: bool = False,
    wanted: Places | None = None,
) -> Replayed:
    """Runs variants as rows of one batch.

    At each block the rows that differ from there on join those that already do, with what entered
    the block in the recorded run.

    Args:
        baseline: The recorded run.
        rows: The variants.
        n_last: How many of the last positions give logits; all must lie in the suffix.
        keep_cache: Whether keys and values are kept, to generate on.
        wanted: Point of the language model -> places in the prompt where it is read.
    """
    blocks, n_layers = (
        submodule(baseline.model, baseline.arch.decoder.stack.path),
        baseline.n_layers,
    )
    start = min([s.position for s in rows.starts] + [baseline.length - n_last])
    order = sorted(range(len(rows.starts)), key=lambda v: rows.starts[v].layer)
    n, width = baseline.n_rows, baseline.length - start
    device = baseline.resid_pre[0].device
    owners = torch.arange(n, device=device).repeat(len(order))
    first = [rows.starts[v].layer for v in order for _ in range(n)]  # ascending
    cache = _SuffixCache(baseline, start, owners, keep=keep_cache)
    reading = _Reading(wanted or {}, start, n)
    handlers = _handlers(rows, order, baseline, reading)
    at_the_end = handlers.pop(_LAST, [])
    run = HookedRun(baseline.model, baseline.arch.points, handlers)
    placed = _Placed(baseline, rows, order, start)
    hidden = baseline.resid_pre[0].new_empty((0, width, baseline.resid_pre[0].shape[-1]))
    mask: dict[torch.device, Tensor | None] = {}
    with run:
        for layer in range(min(first), n_layers):
            active = sum(f <= layer for f in first)
            if active > len(hidden):
                joining = baseline.resid_pre[layer][owners[len(hidden) : active], start:]
                joining = placed.put(joining, 0) if layer == 0 else joining
                hidden = torch.cat([hidden.to(joining.device), joining]) if len(hidden) else joining
            run.place(offset=start, length=width, rows=active)
            call = baseline.call(layer, start, owners[:active].to(hidden.device))
            if call.get("attention_mask") == "causal":
                if hidden.device not in mask:
                    mask[hidden.device] = _causal(start, baseline.length, hidden.device)
                call["attention_mask"] = mask[hidden.device]
            out = blocks[layer](hidden, **call, past_key_values=cache)
            hidden = out if isinstance(out, Tensor) else out[0]
            if layer + 1 in baseline.added:
                more = baseline.added[layer + 1][owners[:active], start:]
                hidden = hidden + placed.put(more, 1 + sorted(baseline.added).index(layer + 1))
        if len(hidden) < len(first):  # variants that change nothing before the final norm
            last = baseline.resid_post[owners[len(hidden) :], start:]
            hidden = torch.cat([hidden.to(last.device), last])
        for handler in at_the_end:
            point = baseline.arch.points[f"blocks.{n_layers - 1}.hook_resid_post"]
            new = handler.call(hidden, Firing(point, start))
            hidden = hidden if new is None else new
        logits = _logits(baseline, run, hidden, start, n_last)
    inverse = torch.tensor([order.index(v) for v in range(len(order))], device=logits.device)
    logits = logits.unflatten(0, (len(order), n))[inverse]
    kept = _joined_cache(baseline, cache, start, owners, first, inverse, n) if keep_cache else None
    return Replayed(logits, kept, [reading.of(order.index(v)) for v in range(len(order))])


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


def _handlers(
    rows: Rows, order: Sequence[int], baseline: Baseline, reading: _Reading
) -> dict[str, list[Handler]]:
    """Ops and readers, with rows counted in the replay's batch, those that come first in front."""
    stages: list[list[list[Counted]]] = [[], []]
    for slot, variant in enumerate(order):
        mine: list[list[Counted]] = [[], []]
        for op, counter in zip(rows.ops[variant], rows.counters[variant], strict=True):
            name, stage = _moment(op.point, baseline)
            moved_rows = tuple(r + slot * baseline.n_rows for r in op.rows)
            moved = replace(op, point=name, rows=moved_rows)
            if op.kind == MEAN:
                pool = op.tensors["pool"] + torch.tensor([slot * baseline.n_rows, 0, 0])
                moved = replace(moved, tensors={**op.tensors, "pool": pool})
            mine[stage].append((moved, counter))
        for stage in (0, 1):
            stages[stage].append(mine[stage])
    handlers: dict[str, list[Handler]] = {}
    for stage in (0, 1):
        for name, made in joined_handlers(stages[stage]).items():
            handlers.setdefault(name, []).extend(made)
        for name in reading.wanted:
            served = _moment(name, baseline)
            if served[1] == stage:
                handlers.setdefault(served[0], []).append(reading.handler(name, baseline))
    return handlers


class _Placed:
    """New picture features put in the places of the recorded ones."""

    def __init__(self, baseline: Baseline, rows: Rows, order: Sequence[int], start: int):
        self._features: list[Tensor] = []
        index: list[tuple[int, int]] = []
        for slot, variant in enumerate(order):
            new = rows.pictures[variant] if rows.pictures else None
            for number, features in (new.features if new else {}).items():
                picture = baseline.tower.pictures.placed[number]
                index += [(slot * baseline.n_rows + picture.row, p - start) for p in picture.places]
                self._features.append(features)
        self._index = torch.tensor(index, dtype=torch.long).reshape(-1, 2).T

    def put(self, x: Tensor, stream: int) -> Tensor:
        """Writes one stream of features into `x`, `[rows, suffix, d_model]`, which is a copy."""
        if self._features:
            new = torch.cat([f[stream] for f in self._features])
            rows, positions = self._index.to(x.device)
            x[rows, positions] = new.to(x)
        return x


class _Reading:
    """What is read of a replay, of the places that lie in its suffix.

    Attributes:
        wanted: Point name -> places in the prompt.
    """

    def __init__(self, wanted: Places, start: int, n_rows: int):
        self._start, self._n_rows = start, n_rows
        self.wanted = {
            name: inside for name, places in wanted.items()
            if (inside := [p for p in places if p[1] >= start])
        }  # fmt: skip
        self._found: dict[str, Tensor] = {}

    def handler(self, name: str, baseline: Baseline) -> Handler:
        """Keeps a point's activation at its places, for every variant that has joined by then."""
        rows, positions = torch.tensor(self.wanted[name]).T
        pattern = "query" in baseline.arch.points[name].axes

        def keep(x: Tensor, firing: Firing) -> None:
            x = x.transpose(1, 2) if pattern else x
            by_variant = x.unflatten(0, (-1, self._n_rows))
            self._found[name] = by_variant[:, rows, positions - firing.offset].cpu()

        return Handler(keep, writes=False)

    def of(self, slot: int) -> dict[str, dict[tuple[int, int], Tensor]]:
        """What was read of one variant."""
        return {
            name: dict(zip(self.wanted[name], found[slot], strict=True))
            for name, found in self._found.items()
            if slot < len(found)
        }


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
