"""Path patching: what one component gives another, and nothing else.

Wang et al. 2022 (arXiv 2211.00593), of heads and MLPs ("senders") into the inputs of heads, of MLPs
and of the logits ("receivers"):

    run 1   the source prompt, from which senders are taken
    run 2   the base prompt, with the sender from run 1 and, at every block after it, attention
            (`freeze="attention"`), or attention and MLPs (`freeze="all"`), held at what they are in
            the base run. So the sender reaches the receiver through the residual stream, and with
            `freeze="attention"` through MLPs. The receiver's input is recorded; its norm is
            computed anew.
    run 3   the base prompt, with the receiver's input from run 2 and everything else free

What is measured of run 3 is the effect of the path; where the receiver is the logits, run 2 is
measured itself. Runs 2 and 3 are variants of one recorded run each (`vlm_lens.sweep`).

Receivers are query heads. Where several share keys and values (grouped-query attention), changed
keys or values would change all of them: run 3 then has one run more before it, of which only the
receiver's own mixture of values (`hook_z`) is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.hooked.identity import run_identity
from vlm_lens.interventions.base import Intervention, compose
from vlm_lens.layout.cells import Cell
from vlm_lens.layout.position_map import PositionMap, position_map
from vlm_lens.layout.positions import All
from vlm_lens.measures.base import Measure
from vlm_lens.measures.capture import Capture
from vlm_lens.patching.donor import (
    Donor,
    PatchingError,
    Transplant,
    n_heads_of,
    read_donor,
)
from vlm_lens.patching.exact import (
    SHARES,
    Direction,
    Resolver,
    Spot,
    as_share,
    check_direction,
)
from vlm_lens.patching.parts import check_apart, measured, numbers
from vlm_lens.patching.patch import At, Heads
from vlm_lens.patching.path_plan import Freeze, PathPlan, plan_paths
from vlm_lens.patching.receivers import LOGITS, Receiver, z_of
from vlm_lens.points.table import NamesFilter
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.scores import Scores
from vlm_lens.scores.scores import scores
from vlm_lens.storage.arrays import ArrayFolder, collect
from vlm_lens.sweep.memory import free_bytes
from vlm_lens.sweep.run import sweep
from vlm_lens.sweep.variants import Variant

_SAVED = 16  # senders between two writes


def patch_paths(
    vlm: HookedModel,
    clean: Prompt,
    corrupt: Prompt,
    *,
    senders: NamesFilter,
    receivers: Receiver | str | Sequence[Receiver | str] = LOGITS,
    freeze: Freeze,
    measure: Measure,
    heads: Heads = None,
    at: At = None,
    direction: Direction = "noise",
    positions: PositionMap | None = None,
    memory: int | None = None,
    save: str | Path | None = None,
    progress: bool = False,
) -> Scores:
    """The share of a difference that goes from each sender to each receiver.

    Args:
        vlm: The model.
        clean: The clean prompt, of one row.
        corrupt: The corrupt one.
        senders: Points of one kind: `"blocks.*.attn.hook_z"`, `"blocks.*.hook_attn_out"`,
            `"blocks.*.hook_mlp_out"` or `"hook_merged"`.
        receivers: `"logits"`, points, or `Receiver(point, head)`; one or several.
        freeze: What is held at its value in the base run behind the sender: `"attention"` or
            `"all"` (attention and MLPs).
        measure: What the difference is of.
        heads: Of the senders: `"each"`, numbers, or `None` for all together.
        at: Where the sender is changed; as for `patch`.
        direction: `"noise"`: the sender's corrupt activation in the clean run (as in the paper),
            which gives the lost share; `"denoise"`: the reverse, the recovered share.
        positions: Which position stands for which; found by default.
        memory: Bytes that recorded inputs, and variants running together, may take.
        save: A folder for finished senders; a run that was killed goes on from there.
        progress: Whether to show a progress bar.

    Returns:
        Scores by the axes of the senders (`layer`, `head`, `kind` or `position`) and `receiver`;
        axes of one entry are left out. NaN where the sender comes after the receiver.

    Raises:
        NoDifference: The measure gives the same for both prompts.
        VLMLensError: Something does not fit the model or the prompts (before any run).
    """
    check_direction(direction)
    positions = positions or position_map(clean.layout, corrupt.layout)
    plan = plan_paths(
        vlm, positions, senders, receivers=receivers, freeze=freeze, heads=heads, at=at
    )
    base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    work = _Paths(vlm, base, source, positions, plan, measure, memory, swap=base is corrupt)
    store = None
    if save is not None:
        identity = run_identity(
            vlm,
            prompts=[(p.inputs, p.layouts) for p in (clean, corrupt)],
            asked=(plan.spots, plan.ends, freeze, measure, direction, positions.text),
        )
        store = ArrayFolder(
            save, identity, unit="sender", holds="patched paths", error=PatchingError
        )

    def batches(left: list[int]) -> Iterator[list[int]]:
        work.prepare()
        return work.batches(left, most=_SAVED if store else None)

    values = collect(
        len(plan), batches, lambda batch: work.measured([plan.spots[i] for i in batch]),
        unit="sender", store=store, progress=progress,
    )  # fmt: skip
    both = (work.there, work.here) if base is corrupt else (work.here, work.there)
    return scores(
        plan.as_array(as_share(values, *both, direction)),
        plan.axes,
        name=SHARES[direction],
        layout=clean.layout,
        pictures=clean.images[0] if clean.images else (),
        about={
            "method": f"path patching ({direction})",
            "model": vlm.name,
            **plan.about,
            "measure": repr(measure),
            "clean": both[0],
            "corrupt": both[1],
        },
    )


class _Paths:
    """The runs of path patching on one base prompt.

    Attributes:
        here: The measure of the base run.
        there: That of the source run.
    """

    def __init__(
        self, vlm: HookedModel, base: Prompt, source: Prompt, positions: PositionMap,
        plan: PathPlan, measure: Measure, memory: int | None, *, swap: bool,
    ):  # fmt: skip
        self._vlm, self._base, self._source = vlm, base, source
        self._points, self._plan = vlm.architecture.points, plan
        self._measure, self._memory = measure, memory
        self._positions, self._swap = positions, swap
        self._resolver = Resolver(vlm, positions, swap=swap)
        self._all: list[Cell] = All().resolve(base.layout)
        self.here = self.there = float("nan")

    def prepare(self) -> None:
        """Runs both prompts once."""
        spots = self._plan.spots
        cells = list(
            dict.fromkeys(there for spot in spots for _, there in self._resolver.cells(spot))
        )
        frozen = [n for kind in self._kinds_frozen() for n in self._points.match(kind)]
        base, source = (self._measure.bind(self._vlm, p) for p in (self._base, self._source))
        self._donor = read_donor(
            self._vlm, self._source, list(dict.fromkeys(n for s in spots for n in s.points)),
            {"text": cells}, n_last=source.n_last,
        )  # fmt: skip
        self._plain = read_donor(
            self._vlm, self._base, frozen, {"text": self._all}, n_last=base.n_last
        )
        self.there = float(numbers(measured(source, self._donor, self._source))[0])
        self.here = float(numbers(measured(base, self._plain, self._base))[0])
        check_apart(self.there, self.here)

    def batches(self, senders: Sequence[int], most: int | None) -> Iterator[list[int]]:
        """Senders by number, as many at a time as their recorded inputs leave memory for."""
        ends = self._plan.ends
        names = {end.point for end in ends if end.point != LOGITS}
        names |= {z_of(self._points[end.point]) for end in ends if self._is_shared(end)}
        width = sum(int(np.prod(self._points[n].sizes[2:])) for n in names)
        size = max(1, 4 * width * len(self._all) * len(ends))
        step = max(1, (self._memory or free_bytes(self._vlm.hf_model)) // size)
        step = min(step, most or step)
        yield from (list(senders[i : i + step]) for i in range(0, len(senders), step))

    def measured(self, spots: Sequence[Spot]) -> np.ndarray:
        """The measure of each path, `[senders, receivers]`; NaN where there is none."""
        ends = self._plan.ends
        values = np.full((len(spots), len(ends)), np.nan)
        sent = [self._sent(spot) for spot in spots]
        for column, end in enumerate(ends):
            if end.point == LOGITS:
                values[:, column] = self._run(sent)
        paths = [
            (i, j)
            for i, spot in enumerate(spots)
            for j, end in enumerate(ends)
            if end.point != LOGITS and self._comes_before(spot, end)
        ]
        if not paths:
            return values
        names = tuple(dict.fromkeys(ends[j].point for _, j in paths))
        inputs = self._recorded(sent, names)
        received = [self._received(inputs[i], ends[j]) for i, j in paths]
        shared = [n for n, (_, j) in enumerate(paths) if self._is_shared(ends[j])]
        if shared:  # of what changed keys or values change, only the receiver's own mixture is kept
            mixed = tuple({z_of(self._points[ends[paths[n][1]].point]): None for n in shared})
            found = self._recorded([received[n] for n in shared], mixed)
            for n, values_of_z in zip(shared, found, strict=True):
                end = ends[paths[n][1]]
                name = z_of(self._points[end.point])
                received[n] = self._put(name, values_of_z[name], self._all, (end.head,))
        for (i, j), value in zip(paths, self._run(received), strict=True):
            values[i, j] = value
        return values

    # ------------------------------------------------------------------ the three runs

    def _sent(self, spot: Spot) -> Intervention:
        """Run 2: the base run held at its own values behind the sender, then the sender."""
        point = self._points[spot.points[0]]
        first = -1 if point.layer is None else point.layer
        same = tuple((cell, cell) for cell in self._all)
        held = tuple(
            name
            for name in self._plain.values
            if self._points[name].layer > first
            or (self._points[name].layer == first and self._points[name].kind == "mlp_out"
                and point.kind in ("attn.z", "attn_out"))
        )  # fmt: skip
        sender = Transplant(spot.points, self._resolver.cells(spot), self._donor, spot.heads)
        return compose([Transplant(held, same, self._plain), sender]) if held else sender

    def _received(self, inputs: dict[str, Tensor], end: Receiver) -> Intervention:
        """Run 3: the receiver's input from run 2."""
        key_head = self._key_head(end)
        head = end.head if key_head is None else key_head
        heads = None if end.head is None else (head,)
        return self._put(end.point, inputs[end.point], self._cells(end), heads)

    def _put(
        self, name: str, value: Tensor, cells: Sequence[Cell], heads: tuple[int, ...] | None
    ) -> Intervention:
        index = {cell: i for i, cell in enumerate(self._all)}
        donor = Donor({name: value}, {"text": index}, self._plain.logits)
        return Transplant((name,), tuple((cell, cell) for cell in cells), donor, heads)

    def _run(self, interventions: Sequence[Intervention]) -> list[float]:
        """The measure under each."""
        return numbers(self._sweep(interventions, self._measure), labels=1).tolist()

    def _recorded(
        self, interventions: Sequence[Intervention], names: tuple[str, ...]
    ) -> Sequence[dict[str, Tensor]]:
        """Points at all positions under each."""
        return self._sweep(interventions, Capture(names, All()))

    def _sweep(self, interventions: Sequence[Intervention], measure: Measure) -> Sequence[Any]:
        variants = [Variant(one, {"path": i}) for i, one in enumerate(interventions)]
        result = sweep(
            self._vlm, self._base, variants, measure=measure, memory=self._memory, progress=False
        )
        if not result.complete:
            raise KeyboardInterrupt
        return result.records

    # ------------------------------------------------------------------ what is where

    def _kinds_frozen(self) -> list[str]:
        """Globs of the points that are held; whole attention where a block has no heads' own."""
        with_z = {self._points[n].layer for n in self._points.match("blocks.*.attn.hook_z")}
        n_layers = self._vlm.cfg.n_layers
        found = [
            f"blocks.{i}.attn.hook_z" if i in with_z else f"blocks.{i}.hook_attn_out"
            for i in range(n_layers)
        ]
        return found + (["blocks.*.hook_mlp_out"] if self._plan.freeze == "all" else [])

    def _cells(self, end: Receiver) -> list[Cell]:
        """Where a receiver's input is changed, in the base prompt."""
        found = self._positions.resolve(end.at)
        return list(found.values() if self._swap else found)

    def _comes_before(self, spot: Spot, end: Receiver) -> bool:
        sender, receiver = self._points[spot.points[0]], self._points[end.point]
        if sender.layer is None:
            return True
        same_block = receiver.kind == "ln2.normalized" and sender.kind in ("attn.z", "attn_out")
        return sender.layer < receiver.layer or (same_block and sender.layer == receiver.layer)

    def _is_shared(self, end: Receiver) -> bool:
        """Whether other query heads read the same keys or values."""
        return self._key_head(end) is not None and self._group(end) > 1

    def _group(self, end: Receiver) -> int:
        point = self._points[end.point]
        return n_heads_of(self._points[z_of(point)]) // n_heads_of(point)

    def _key_head(self, end: Receiver) -> int | None:
        """The head of keys and values that a query head reads; `None` where none is meant."""
        keyed = end.point != LOGITS and self._points[end.point].kind in ("attn.k", "attn.v")
        if end.head is None or not keyed:
            return None
        return end.head // self._group(end)
