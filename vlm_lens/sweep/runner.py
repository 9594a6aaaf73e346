"""Runs variants of one prompt: records the plain run, and computes what each can change."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Sequence

import torch

from vlm_lens.engine.baseline import Baseline
from vlm_lens.engine.handlers import Counter
from vlm_lens.engine.joining import CountedOp
from vlm_lens.engine.joint import fitting, outline, run_jointly
from vlm_lens.engine.not_replayable import NotReplayable
from vlm_lens.engine.obstacles import no_replay_with
from vlm_lens.engine.pictures import NotSeparable, Pictures
from vlm_lens.engine.recorder import record
from vlm_lens.engine.replay import ReplayVariant, replay
from vlm_lens.engine.tower import TowerReplay
from vlm_lens.errors import InterventionError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.locks import alone
from vlm_lens.measures.base import BoundLogits, BoundMeasure, Record
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.sweep.memory import free_bytes
from vlm_lens.sweep.plan import Job, Lowered, chunks, plan


def check_labels(labels: Sequence[str], columns: Iterable[str]) -> None:
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


class Runner:
    """Sorts variants to engines and runs them in chunks.

    The plain run is recorded once, however often `run` is called.

    Args:
        vlm: The model.
        prompt: The prompt, padded on the left.
        measure: What is measured.
        engine: As the user asked for it.
        memory: Bytes that variants which run together may take, if the user said so.
        needs_tower: Whether any variant changes tower or projector.
        joint: Whether few variants may run in the plain run itself, which then is not recorded.

    Attributes:
        engines: How many variants each engine computed.
        reasons: Why variants were not replayed: reason -> how many.
        plain: The measurements of the run without interventions, one a row of the prompt.
    """

    def __init__(
        self,
        vlm: HookedModel,
        prompt: Prompt,
        measure: BoundMeasure,
        *,
        engine: str = "auto",
        memory: int | None = None,
        needs_tower: bool = False,
        joint: bool = True,
    ):
        self.vlm, self.prompt, self.measure = vlm, prompt, measure
        self.engine, self.memory, self.needs_tower = engine, memory, needs_tower
        self._joint = joint
        self.engines: Tally[str] = Tally()
        self.reasons: Tally[str] = Tally()
        self.plain: list[Record] = []
        self._recorded: tuple[Baseline | None, str] | None = None
        self._began = False

    def run(
        self, lowered: Lowered, todo: Sequence[int], labels: Sequence[str] = ()
    ) -> Iterator[dict[int, list[Record]]]:
        """Finished variants, a few at a time.

        Args:
            lowered: Variants.
            todo: Which of them.
            labels: Names that no column may have.

        Raises:
            NotReplayable: A variant is not, and `engine="replay"` was asked for.
        """
        if not todo and self.plain:
            return
        unchanged = [number for number in todo if not lowered[number]]
        todo = [number for number in todo if lowered[number]]
        baseline, reason = None, "asked for" if self.engine == "full" else ""
        may = self._joint and todo and not reason and not self.plain
        if may and (joint := self._jointly(lowered, todo, labels)):
            self.plain, finished = joint
            if unchanged:
                self.engines["plain run"] += len(unchanged)
                finished |= {number: [dict(row) for row in self.plain] for number in unchanged}
            yield finished
            return
        if todo and not reason:
            baseline, reason = self._record()
        with torch.no_grad():
            if not self._began:
                self.plain = self.measure.of_plain(baseline)
            if unchanged and not self.plain:
                self.plain = self.measure.of_run(())
        self._began = True
        check_labels(labels, self.plain[0] if self.plain else ())
        if unchanged:
            self.engines["plain run"] += len(unchanged)
            yield {number: [dict(row) for row in self.plain] for number in unchanged}
        jobs, slow = [], dict.fromkeys(todo, reason)
        if baseline is not None:
            jobs, slow = plan(lowered, todo, baseline, self.measure.refuses)
        if slow and self.engine == "replay":
            raise NotReplayable(next(iter(slow.values())))
        self.reasons.update(slow.values())
        if jobs:
            budget = self.memory or free_bytes(baseline.model)
            for chunk in chunks(jobs, baseline, budget, keep_cache=self.measure.goes_on):
                self.engines["replay"] += len(chunk)
                yield self._replay(lowered, chunk, baseline)
        for number in slow:
            self.engines["full"] += 1
            yield {number: self._full(lowered, number)}

    def _record(self) -> tuple[Baseline | None, str]:
        """The recorded plain run, or why there is none."""
        if self._recorded is None:
            self._recorded = self._record_now()
        return self._recorded

    @property
    def _not_replayable(self) -> str:
        """Why no variant of this model is replayed now; empty if some may be."""
        if self.vlm._active:
            return "other interventions or hooks are open around the sweep"
        return self.vlm.family.not_replayable or no_replay_with(self.vlm.hf_model)

    @alone
    def _record_now(self) -> tuple[Baseline | None, str]:
        family = self.vlm.family
        reason = self._not_replayable
        if self.measure.goes_on:
            reason = reason or family.not_continued
        if reason:
            return None, reason
        tower, no_tower = None, ""
        if self.needs_tower:
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
    def _jointly(
        self, lowered: Lowered, todo: Sequence[int], labels: Sequence[str]
    ) -> tuple[list[Record], dict[int, list[Record]]] | None:
        """The plain run's record and the variants', of one forward pass; `None` if it takes more.

        Few variants that change the last positions only are measured in the plain run itself.
        """
        family, measure, inputs = self.vlm.family, self.measure, self.prompt.inputs
        if self._not_replayable or family.adds_between_blocks:
            return None
        if self.memory is not None:  # in pieces of the size that was asked for
            return None
        if measure.goes_on or measure.cells or not isinstance(measure, BoundLogits):
            return None
        run = outline(self.vlm.hf_model, self.vlm.architecture, inputs)
        starts = fitting(run, inputs, (lowered[number] for number in todo), measure.n_last)
        if starts is None:
            return None
        variants = [
            ReplayVariant(_counted(lowered, number), start)
            for number, start in zip(todo, starts, strict=True)
        ]
        try:
            logits, replayed = run_jointly(run, inputs, variants, n_last=measure.n_last)
        except NotReplayable:
            return None
        run.logits = logits
        with torch.no_grad():
            plain = measure.of_plain(run)
            check_labels(labels, plain[0])
            records = measure.of_replay(run, replayed)
        self.engines["replay"] += len(todo)
        return plain, dict(zip(todo, records, strict=True))

    @torch.no_grad()
    def _full(self, lowered: Lowered, number: int) -> list[Record]:
        return self.measure.of_run(lowered.variants[number].intervention)

    @alone
    def _replay(
        self, lowered: Lowered, chunk: Sequence[Job], baseline: Baseline
    ) -> dict[int, list[Record]]:
        variants = [ReplayVariant(_counted(lowered, job.number), job.start) for job in chunk]
        replayed = replay(
            baseline, variants, n_last=self.measure.n_last, keep_cache=self.measure.goes_on,
            cells=self.measure.cells,
        )  # fmt: skip
        records = self.measure.of_replay(baseline, replayed)
        return {job.number: measured for job, measured in zip(chunk, records, strict=True)}


def _counted(lowered: Lowered, number: int) -> list[CountedOp]:
    """A variant's ops, with fresh counters of what they write."""
    intervention = lowered.variants[number].intervention
    return [CountedOp(op, Counter(intervention, op.point)) for op in lowered[number]]


__all__ = ["Runner", "check_labels"]
