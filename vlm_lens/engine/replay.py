"""Variants of a recorded run, together as rows of a batch, from where each of them differs.

Three variants of a prompt of one row, A with its first op in block 1, B in block 2, C after the
last block; p is the earliest position that any of them changes:

                  positions 0 .. p-1            positions p .. end
    tower         recorded (pictures that a variant touches: engine/tower.py)
    block 0       -                             -
    block 1       recorded keys and values      A          A joins with the recorded stream
    block 2       recorded keys and values      A, B       B joins likewise
    block 3       recorded keys and values      A, B
    norm, head    -                             A, B, C    C joins; at the positions asked for

Where nothing stands (-), nothing is computed. The model's own blocks run, with hooks at the points
of the ops; a row of the batch is a row of the prompt under one variant.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor
from transformers import DynamicCache

from vlm_lens.engine.baseline import Baseline
from vlm_lens.engine.firing import Firing, Handler
from vlm_lens.engine.hooks import HookedRun
from vlm_lens.engine.joining import Cell, CountedOp, joined_handlers
from vlm_lens.engine.pictures import ShownPicture
from vlm_lens.engine.start import Stage, Start, in_text, served
from vlm_lens.engine.suffix_cache import SuffixCache
from vlm_lens.engine.tower import ChangedPictures, not_fired
from vlm_lens.errors import InterventionError
from vlm_lens.points.placement import called
from vlm_lens.points.sites import submodule

# point name -> row and position of the prompt's activation
CellsByPoint = Mapping[str, Sequence[Cell]]


@dataclass(frozen=True)
class ReplayVariant:
    """A variant of a recorded run.

    Attributes:
        ops: What it changes, its rows counting in the prompt.
        start: From where it differs.
    """

    ops: Sequence[CountedOp]
    start: Start


@dataclass(frozen=True)
class Replayed:
    """What a replay gives.

    Attributes:
        logits: `[variants, rows of the prompt, positions asked, d_vocab]`.
        cache: Keys and values of every row, `variants * rows` of them, if asked.
        read: For each variant, point name -> cell -> the activation there, for those cells asked
            that the variant can change.
    """

    logits: Tensor
    cache: DynamicCache | None = None
    read: list[dict[str, dict[Cell, Tensor]]] = field(default_factory=list)


@torch.no_grad()
def replay(
    baseline: Baseline,
    variants: Sequence[ReplayVariant],
    *,
    n_last: int = 1,
    keep_cache: bool = False,
    cells: CellsByPoint | None = None,
) -> Replayed:
    """Runs variants as rows of one batch.

    Args:
        baseline: The recorded run.
        variants: The variants.
        n_last: How many of the last positions give logits.
        keep_cache: Whether keys and values are kept, to generate on.
        cells: Where activations are read.

    Raises:
        InterventionError: An op wrote nothing.
    """
    points, cells = baseline.arch.points, cells or {}
    in_pictures = {name: cells[name] for name in cells if points[name].space != "text"}
    in_prompt = {name: cells[name] for name in cells if points[name].space == "text"}
    pictures = _change_pictures(baseline, variants, in_pictures)
    result = _TextReplay(baseline, variants, pictures, n_last, in_prompt, keep_cache).run()
    for variant in variants:
        for counted in variant.ops:
            counted.counter.check()
    for read, changed in zip(result.read, pictures, strict=True):
        read |= changed.read
    return result


def _change_pictures(
    baseline: Baseline, variants: Sequence[ReplayVariant], cells: CellsByPoint
) -> list[ChangedPictures]:
    """What each variant makes of the pictures that it touches."""
    changed = [ChangedPictures() for _ in variants]
    acting = [i for i, variant in enumerate(variants) if variant.start.tower is not None]

    def together(i: int) -> int:
        return baseline.tower.together(variants[i].start.tower, i)

    by_layer = sorted(acting, key=lambda i: (together(i), variants[i].start.tower.layer))
    for _, group in groupby(by_layer, key=together):
        members = list(group)
        made = baseline.tower.replay(
            [variants[i].start.tower for i in members],
            [[c for c in variants[i].ops if not in_text(c.op, baseline)] for i in members],
            cells,
        )
        for i, one in zip(members, made, strict=True):
            changed[i] = one
    return changed


class _TextReplay:
    """The language model's part of a replay; see `replay`."""

    def __init__(
        self,
        baseline: Baseline,
        variants: Sequence[ReplayVariant],
        pictures: Sequence[ChangedPictures],
        n_last: int,
        cells: CellsByPoint,
        keep_cache: bool,
    ):
        self._baseline, self._n_last, self._keep_cache = baseline, n_last, keep_cache
        n_rows, self._device = baseline.n_rows, baseline.resid_pre[0].device
        # rows of the batch: variants that start at earlier blocks first, so that those that run a
        # block are its first rows
        order = sorted(range(len(variants)), key=lambda v: variants[v].start.layer)
        self._variants = [variants[v] for v in order]
        self._pictures = [pictures[v] for v in order]
        self._rank = [order.index(v) for v in range(len(order))]  # of each variant as given
        self._join_layers = [v.start.layer for v in self._variants for _ in range(n_rows)]
        self._prompt_rows = torch.arange(n_rows, device=self._device).repeat(len(order))
        self._start = min([v.start.position for v in variants] + [baseline.length - n_last])
        self._reader = _CellReader(cells, self._start, n_rows)
        self._handlers, self._final_handlers = self._planned()

    def run(self) -> Replayed:
        """Runs the blocks, then norm and head."""
        baseline = self._baseline
        cache = SuffixCache(baseline, self._start, self._prompt_rows, keep=self._keep_cache)
        run = HookedRun(baseline.model, baseline.arch.points, self._handlers)
        with run:
            resid = self._run_blocks(run, cache)
            for handler in self._final_handlers:
                point = baseline.arch.points[f"blocks.{baseline.n_layers - 1}.hook_resid_post"]
                new = handler.call(resid, Firing(point, self._start))
                resid = resid if new is None else new
            logits = self._logits(run, resid)
        self._reader.check(baseline, self._join_layers[0])
        n_rows, ranks = baseline.n_rows, torch.tensor(self._rank, device=logits.device)
        whole = None
        if self._keep_cache:
            rows = ranks[:, None] * n_rows + torch.arange(n_rows, device=ranks.device)
            whole = cache.whole(rows.flatten())
        read = [self._reader.of_variant(rank) for rank in self._rank]
        return Replayed(logits.unflatten(0, (-1, n_rows))[ranks], whole, read)

    def _run_blocks(self, run: HookedRun, cache: SuffixCache) -> Tensor:
        """The stream that enters the final norm, `[rows, suffix, d_model]`."""
        baseline, start, rows = self._baseline, self._start, self._prompt_rows
        blocks = submodule(baseline.model, baseline.arch.decoder.stack.path)
        features = _ChangedFeatures(baseline, self._pictures, start)
        width = baseline.length - start
        resid = baseline.resid_pre[0].new_empty((0, width, baseline.resid_pre[0].shape[-1]))
        masks: dict[torch.device, Tensor | None] = {}
        for layer in range(self._join_layers[0], baseline.n_layers):
            n_running = bisect_right(self._join_layers, layer)
            if n_running > len(resid):
                joining = _taken(baseline.resid_pre[layer], rows[len(resid) : n_running], start)
                joining = features.put(joining, stream=0) if layer == 0 else joining
                resid = torch.cat([resid.to(joining.device), joining]) if len(resid) else joining
            run.place(offset=start, length=width, rows=n_running)
            call = baseline.call(layer, start, rows[:n_running])
            if "attention_mask" in call and call["attention_mask"] is None:
                if resid.device not in masks:
                    masks[resid.device] = baseline.causal_mask(start, resid.device)
                call["attention_mask"] = masks[resid.device]
            output = blocks[layer](resid, **call, past_key_values=cache)
            resid = output if isinstance(output, Tensor) else output[0]
            if layer + 1 in baseline.added:
                added = _taken(baseline.added[layer + 1], rows[:n_running], start)
                stream = 1 + sorted(baseline.added).index(layer + 1)
                resid = resid + features.put(added.to(resid.device), stream=stream)
        if len(resid) < len(rows):  # variants that change nothing before the final norm
            joining = _taken(baseline.resid_post, rows[len(resid) :], start)
            resid = torch.cat([resid.to(joining.device), joining])
        return resid

    def _logits(self, run: HookedRun, resid: Tensor) -> Tensor:
        baseline, start, n_last = self._baseline, self._start, self._n_last
        if not run.watches("ln_final.hook_normalized", "hook_logits"):
            resid, start = resid[:, -n_last:], baseline.length - n_last
        run.place(offset=start, length=resid.shape[1], rows=len(resid))
        normed = called(baseline.arch.final_norm(baseline.model), resid)
        logits = baseline.arch.logits(baseline.model, normed)
        logits = run.pass_through("hook_logits", logits)[:, -n_last:]
        return logits.to(baseline.logits.device)

    def _planned(self) -> tuple[dict[str, list[Handler]], list[Handler]]:
        """Handlers of ops and readers at points, and those on what enters the final norm."""
        baseline = self._baseline
        ops = [
            [c.on_rows(rank * baseline.n_rows) for c in v.ops if in_text(c.op, baseline)]
            for rank, v in enumerate(self._variants)
        ]
        readers = {name: self._reader.handler(name, baseline) for name in self._reader.cells}
        return planned(ops, baseline, readers)


def planned(
    variants: Sequence[Sequence[CountedOp]],
    baseline: Baseline,
    readers: Mapping[str, Handler] | None = None,
) -> tuple[dict[str, list[Handler]], list[Handler]]:
    """Handlers at the points where ops are served, and those on what enters the final norm.

    Args:
        variants: For each variant its ops in the language model, at their places in the joint run.
        baseline: The recorded run.
        readers: Point name -> what reads there, after the ops.
    """
    staged: dict[Stage, list[list[CountedOp]]] = {s: [[] for _ in variants] for s in Stage}
    final: list[list[CountedOp]] = [[] for _ in variants]
    for rank, ops in enumerate(variants):
        for counted in ops:
            where = served(counted.op.point, baseline)
            if where.point is None:
                final[rank].append(counted)
            else:
                staged[where.stage][rank].append(counted.at_point(where.point))
    handlers: dict[str, list[Handler]] = {}
    at_the_end = [h for made in joined_handlers(final).values() for h in made]
    for stage in Stage:
        for name, made in joined_handlers(staged[stage]).items():
            handlers.setdefault(name, []).extend(made)
        for name, reader in (readers or {}).items():
            where = served(name, baseline)
            if where.stage == stage:
                (handlers.setdefault(where.point, []) if where.point else at_the_end).append(reader)
    return handlers, at_the_end


class _ChangedFeatures:
    """New picture features put where the recorded ones stand."""

    def __init__(self, baseline: Baseline, pictures: Sequence[ChangedPictures], start: int):
        self._features: list[Tensor] = []
        rows, positions = [], []
        places = [torch.tensor(shown.positions) for shown in _shown(baseline)]
        for rank, changed in enumerate(pictures):
            for number, features in changed.features.items():
                row = rank * baseline.n_rows + _shown(baseline)[number].row
                rows.append(torch.full_like(places[number], row))
                positions.append(places[number] - start)
                self._features.append(features)
        if self._features:
            self._cells = torch.stack([torch.cat(rows), torch.cat(positions)])

    def put(self, x: Tensor, *, stream: int) -> Tensor:
        """Writes one stream of features into `x`, `[rows, suffix, d_model]`, which is a copy."""
        if self._features:
            new = torch.cat([f[stream] for f in self._features])
            rows, positions = self._cells.to(x.device)
            x[rows, positions] = new.to(x)
        return x


def _taken(stream: Tensor, rows: Tensor, start: int) -> Tensor:
    """Some rows of a recorded stream from a position on."""
    return stream[rows.to(stream.device), start:]


def _shown(baseline: Baseline) -> Sequence[ShownPicture]:
    """The pictures of the prompt, as far as the tower was recorded."""
    return () if baseline.tower is None else baseline.tower.pictures.shown


class _CellReader:
    """Reads activations at those cells that lie in the suffix.

    Attributes:
        cells: Point name -> those cells.
    """

    def __init__(self, cells: CellsByPoint, start: int, n_rows: int):
        self._n_rows = n_rows
        self.cells = {
            name: inside
            for name, mine in cells.items()
            if (inside := [cell for cell in mine if cell[1] >= start])
        }
        self._found: dict[str, Tensor] = {}  # [variants that run there, cells, ...]

    def handler(self, name: str, baseline: Baseline) -> Handler:
        """Keeps a point's activation at its cells, for every variant that has joined by then."""
        rows, positions = torch.tensor(self.cells[name]).T
        pattern = "query" in baseline.arch.points[name].axes

        def keep(x: Tensor, firing: Firing) -> None:
            x = x.transpose(1, 2) if pattern else x
            by_variant = x.unflatten(0, (-1, self._n_rows))
            self._found[name] = by_variant[:, rows, positions - firing.offset].cpu()

        return Handler(keep, writes=False)

    def check(self, baseline: Baseline, first_layer: int) -> None:
        """Raises if a point never fired that some variant computes.

        Args:
            baseline: The recorded run.
            first_layer: The first block that was run.

        Raises:
            InterventionError: It did not.
        """
        for name in self.cells:
            computed = name != "hook_embed" and served(name, baseline).layer >= first_layer
            if computed and name not in self._found:
                raise InterventionError(not_fired(name))

    def of_variant(self, rank: int) -> dict[str, dict[Cell, Tensor]]:
        """What was read of one variant."""
        return {
            name: dict(zip(self.cells[name], found[rank], strict=True))
            for name, found in self._found.items()
            if rank < len(found)
        }
