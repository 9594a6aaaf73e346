"""Runs a sweep: records the plain run once, and computes of each variant what it can change."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from vlm_lens.engine.baseline import Baseline
from vlm_lens.engine.engines import ENGINES as OF_RUNS
from vlm_lens.engine.handlers import Counter
from vlm_lens.engine.joining import CountedOp
from vlm_lens.engine.joint import fitting, outline, run_jointly
from vlm_lens.engine.not_replayable import NotReplayable
from vlm_lens.engine.pictures import NotSeparable, Pictures
from vlm_lens.engine.recorder import record
from vlm_lens.engine.replay import ReplayVariant, replay
from vlm_lens.engine.tower import TowerReplay
from vlm_lens.errors import InterventionError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.integers import as_integer
from vlm_lens.interventions.base import Target
from vlm_lens.locks import alone
from vlm_lens.measures.base import BoundLogits, BoundMeasure, Record
from vlm_lens.measures.named import as_measure
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.sweep.memory import free_bytes
from vlm_lens.sweep.plan import Job, Lowered, chunks, plan
from vlm_lens.sweep.result import SweepResult
from vlm_lens.sweep.store import SweepStore, identity
from vlm_lens.sweep.variants import expand

ENGINES = ("auto", "replay", "full")


def sweep(
    vlm: HookedModel,
    prompt: Any,
    variants: Any,
    images: Any = None,
    *,
    measure: Any = "top1",
    engine: str = "auto",
    memory: int | None = None,
    save: Any = None,
    progress: bool = True,
) -> SweepResult:
    """Measures many variants of one run; see `HookedVLM.sweep`."""
    if engine not in ENGINES:
        one_by_one = "" if engine not in OF_RUNS else (
            " A sweep computes variants together, by torch hooks: with another engine, run them "
            f"one by one, vlm.run(prompt, interventions=variant, engine={engine!r})."
        )  # fmt: skip
        raise InterventionError(
            f"engine is one of {', '.join(ENGINES)}, not {engine!r}.{one_by_one}"
        )
    if memory is not None and as_integer(memory, "memory, in bytes,", InterventionError) < 1:
        raise InterventionError(f"memory is a number of bytes, at least 1, not {memory}.")
    prompt, measure = vlm.prompts.left_padded(vlm.as_prompt(prompt, images)), as_measure(measure)
    # what does not fit is refused before the first forward pass
    bound = measure.bind(vlm, prompt)
    listed = expand(variants, vlm.architecture.points)
    labels = tuple(dict.fromkeys(k for v in listed for k in v.labels))
    _check_labels(labels, bound.columns)
    lowered = Lowered(listed, Target(vlm.architecture.points, prompt.layouts, lambda: vlm.facts))
    runner = _Runner(vlm, prompt, lowered, bound, labels, engine, memory)
    if save is None:
        records, complete = _measure_all(runner, len(listed), None, progress)
    else:
        with SweepStore(save, identity(vlm, prompt, listed, measure)) as store:
            records, complete = _measure_all(runner, len(listed), store, progress)
    rows = [
        {**dict(listed[i].labels), **({"row": r} if len(prompt) > 1 else {}), **measured}
        for i in sorted(records)
        for r, measured in enumerate(records[i])
    ]
    return SweepResult(
        rows, dict(runner.engines), dict(runner.reasons), runner.plain, labels, complete,
        lowered.places, prompt.layouts, prompt.images or (),
    )  # fmt: skip


def _check_labels(labels: Sequence[str], columns: Iterable[str]) -> None:
    """Refuses labels of variants that would hide what is measured, or be hidden by it.

    Raises:
        InterventionError: There are such.
    """
    taken = [label for label in labels if label in (*columns, "row")]
    if taken:
        raise InterventionError(
            f"The label{'s' * (len(taken) > 1)} {', '.join(map(repr, taken))} of a variant "
            f"{'are' if len(taken) > 1 else 'is'} also a column of the result: give another name."
        )


def _measure_all(
    runner: _Runner, n_variants: int, store: SweepStore | None, progress: bool
) -> tuple[dict[int, list[dict[str, Any]]], bool]:
    """The records of every variant that is finished, and whether these are all."""
    records: dict[int, list[dict[str, Any]]] = {}
    if store is not None:
        records, runner.plain = store.load(), store.load_plain()
    todo = [i for i in range(n_variants) if i not in records]
    if store is not None and todo:
        store.must_be_writable()
    bar = tqdm(total=n_variants, initial=len(records), disable=not progress, unit="variant")
    try:
        with bar:
            for finished in runner.run(todo):
                records.update(finished)
                if store is not None:
                    store.add_plain(runner.plain)
                    store.add(finished)
                bar.update(len(finished))
    except KeyboardInterrupt:
        return records, False
    return records, True


class _Runner:
    """Sorts variants to engines and runs them in chunks.

    Attributes:
        plain: The measurements of the run without interventions, one a row of the prompt.
    """

    def __init__(
        self,
        vlm: HookedModel,
        prompt: Prompt,
        lowered: Lowered,
        measure: BoundMeasure,
        labels: Sequence[str],
        engine: str,
        memory: int | None,
    ):
        self.vlm, self.prompt, self.lowered, self.measure = vlm, prompt, lowered, measure
        self.labels, self.engine, self.memory = labels, engine, memory
        self.engines: Tally[str] = Tally()
        self.reasons: Tally[str] = Tally()
        self.plain: list[Record] = []

    def run(self, todo: Sequence[int]) -> Iterator[dict[int, list[Record]]]:
        """Finished variants, a chunk at a time."""
        if not todo and self.plain:
            return
        unchanged = [number for number in todo if not self.lowered[number]]
        todo = [number for number in todo if self.lowered[number]]
        baseline, reason = None, "asked for" if self.engine == "full" else ""
        if todo and not reason and not self.plain and (joint := self._jointly(todo)):
            self.plain, finished = joint
            if unchanged:
                self.engines["plain run"] += len(unchanged)
                finished |= {number: [dict(row) for row in self.plain] for number in unchanged}
            yield finished
            return
        if todo and not reason:
            baseline, reason = self._record()
        with torch.no_grad():
            plain = self.measure.of_plain(baseline)
            self.plain = plain or (self.measure.of_run(()) if unchanged else [])
        _check_labels(self.labels, self.plain[0] if self.plain else ())
        if unchanged:
            self.engines["plain run"] += len(unchanged)
            yield {number: [dict(row) for row in self.plain] for number in unchanged}
        jobs, slow = [], dict.fromkeys(todo, reason)
        if baseline is not None:
            jobs, slow = plan(self.lowered, todo, baseline, self.measure.refuses)
        if slow and self.engine == "replay":
            raise NotReplayable(next(iter(slow.values())))
        self.reasons.update(slow.values())
        if jobs:
            budget = self.memory or free_bytes(baseline.resid_pre[0].device)
            for chunk in chunks(jobs, baseline, budget, keep_cache=self.measure.goes_on):
                self.engines["replay"] += len(chunk)
                yield self._replay(chunk, baseline)
        for number in slow:
            self.engines["full"] += 1
            yield {number: self._full(number)}

    @alone
    def _record(self) -> tuple[Baseline | None, str]:
        """The recorded plain run, or why there is none."""
        family = self.vlm.family
        if self.vlm._active:
            return None, "other interventions or hooks are open around the sweep"
        reason = family.not_replayable
        if self.measure.goes_on:
            reason = reason or family.not_continued
        if reason:
            return None, reason
        tower, no_tower = None, ""
        if self.lowered.needs_tower:
            model, arch = self.vlm.hf_model, self.vlm.architecture
            try:
                pictures = Pictures(model, family, arch, self.prompt.inputs, self.prompt.layouts)
                tower = TowerReplay(model, arch, pictures, adds_positions=family.adds_positions)
            except NotSeparable as error:
                no_tower = str(error)
        try:
            baseline = record(
                self.vlm.hf_model, self.vlm.architecture, self.prompt.inputs,
                adds=family.adds_between_blocks, n_last=self.measure.n_last, tower=tower,
            )  # fmt: skip
        except NotReplayable as error:
            return None, str(error)
        baseline.no_tower = baseline.no_tower or no_tower
        return baseline, ""

    @alone
    def _jointly(self, todo: Sequence[int]) -> tuple[list[Record], dict[int, list[Record]]] | None:
        """The plain run's record and the variants', of one forward pass; `None` if it takes more.

        Few variants that change the last positions only are measured in the plain run itself.
        """
        family, measure, inputs = self.vlm.family, self.measure, self.prompt.inputs
        if self.vlm._active or family.not_replayable or family.adds_between_blocks:
            return None
        if self.memory is not None:  # in pieces of the size that was asked for
            return None
        if measure.goes_on or measure.cells or not isinstance(measure, BoundLogits):
            return None
        run = outline(self.vlm.hf_model, self.vlm.architecture, inputs)
        starts = fitting(run, inputs, (self.lowered[number] for number in todo), measure.n_last)
        if starts is None:
            return None
        variants = [
            ReplayVariant(self._counted(number), start)
            for number, start in zip(todo, starts, strict=True)
        ]
        try:
            logits, replayed = run_jointly(run, inputs, variants, n_last=measure.n_last)
        except NotReplayable:
            return None
        run.logits = logits
        with torch.no_grad():
            plain = measure.of_plain(run)
            _check_labels(self.labels, plain[0])
            records = measure.of_replay(run, replayed)
        self.engines["replay"] += len(todo)
        return plain, dict(zip(todo, records, strict=True))

    def _counted(self, number: int) -> list[CountedOp]:
        """A variant's ops, with fresh counters of what they write."""
        intervention = self.lowered.variants[number].intervention
        return [CountedOp(op, Counter(intervention, op.point)) for op in self.lowered[number]]

    @torch.no_grad()
    def _full(self, number: int) -> list[Record]:
        return self.measure.of_run(self.lowered.variants[number].intervention)

    @alone
    def _replay(self, chunk: Sequence[Job], baseline: Baseline) -> dict[int, list[Record]]:
        variants = [ReplayVariant(self._counted(job.number), job.start) for job in chunk]
        replayed = replay(
            baseline, variants, n_last=self.measure.n_last, keep_cache=self.measure.goes_on,
            cells=self.measure.cells,
        )  # fmt: skip
        records = self.measure.of_replay(baseline, replayed)
        return {job.number: measured for job, measured in zip(chunk, records, strict=True)}
