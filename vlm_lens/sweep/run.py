"""Runs a sweep: records the plain run once, and computes of each variant what it can change."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from vlm_lens.engine.baseline import Baseline, NotReplayable, record
from vlm_lens.engine.handlers import Counter
from vlm_lens.engine.pictures import NotSeparable, Pictures
from vlm_lens.engine.replay import Rows, Start, in_text, replay
from vlm_lens.engine.tower import Repictured, TowerReplay
from vlm_lens.errors import InterventionError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.interventions.base import Target
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.sweep.continuing import continue_greedily
from vlm_lens.sweep.measures import Capture, Measure, as_measure
from vlm_lens.sweep.memory import free_bytes
from vlm_lens.sweep.plan import Job, Lowered, chunks, plan
from vlm_lens.sweep.result import SweepResult
from vlm_lens.sweep.store import SweepStore, identity
from vlm_lens.sweep.variants import expand

ENGINES = ("auto", "replay", "full")
_PACKED = "attention of a tower that reads all pictures as one sequence is captured in full runs"


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
        raise InterventionError(f"engine is one of {', '.join(ENGINES)}, not {engine!r}.")
    prompt, measure = vlm.prompts.left_padded(vlm.as_prompt(prompt, images)), as_measure(measure)
    listed = expand(variants, vlm.architecture.points)
    target = Target(vlm.architecture.points, prompt.layouts, vlm.facts)
    lowered = Lowered(listed, target)  # what does not fit is refused before the first forward pass
    runner = _Runner(vlm, prompt, lowered, measure, engine, memory)
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
    labels = tuple(dict.fromkeys(k for v in listed for k in v.labels))
    return SweepResult(
        rows, dict(runner.engines), dict(runner.reasons), runner.plain, labels, complete,
        lowered.places,
    )  # fmt: skip


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
        measure: Measure,
        engine: str,
        memory: int | None,
    ):
        self.vlm, self.prompt, self.lowered, self.measure = vlm, prompt, lowered, measure
        self.engine, self.memory = engine, memory
        self.engines: Tally[str] = Tally()
        self.reasons: Tally[str] = Tally()
        self.plain: list[dict[str, Any]] = []
        self._wanted: dict[str, dict[str, list[tuple[int, int]]]] = {"text": {}, "pictures": {}}

    def run(self, todo: Sequence[int]) -> Iterator[dict[int, list]]:
        """Finished variants, a chunk at a time."""
        if not todo and self.plain:
            return
        baseline, reason = None, "asked for" if self.engine == "full" else ""
        if todo and not reason:
            baseline, reason = self._record()
        self._measure_plain(baseline)
        jobs, slow = [], dict.fromkeys(todo, reason)
        if baseline is not None:
            jobs, slow = plan(self.lowered, todo, baseline, self._refused)
        if slow and self.engine == "replay":
            raise NotReplayable(next(iter(slow.values())))
        self.reasons.update(slow.values())
        keep = self.measure.new_tokens > 1
        if jobs:
            budget = self.memory or free_bytes(baseline.resid_pre[0].device)
            for chunk in chunks(jobs, baseline, budget, keep_cache=keep):
                self.engines["replay"] += len(chunk)
                yield self._replay(chunk, baseline)
        for number in slow:
            self.engines["full"] += 1
            yield {number: self._full(number)}

    def _record(self) -> tuple[Baseline | None, str]:
        family = self.vlm.family
        if self.vlm._active:
            return None, "other interventions or hooks are open around the sweep"
        reason = family.not_replayable
        if self.measure.new_tokens > 1:
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

    def _measure_plain(self, baseline: Baseline | None) -> None:
        if isinstance(self.measure, Capture):
            self.plain = self.measure.run(self.vlm, self.prompt, ())
            points = self.vlm.architecture.points
            for name in self.plain[0]:
                kind = "text" if points[name].space == "text" else "pictures"
                self._wanted[kind][name] = self.measure.places(points[name], self.prompt.layouts)
        elif not self.measure.new_tokens:
            logits = self.vlm.run(self.prompt) if baseline is None else baseline.logits
            self.plain = self._measured(logits[None, :, -self.measure.n_last :], [None])[0]

    def _refused(self, start: Start) -> str:
        points = self.vlm.architecture.points
        packed = self.vlm.family.packs_pictures(self.vlm.hf_model.config)
        seen = start.part is not None and any(
            points[name].on_demand for name in self._wanted["pictures"]
        )
        return _PACKED if packed and seen else ""

    def _replay(self, chunk: list[Job], baseline: Baseline) -> dict[int, list[dict[str, Any]]]:
        counted = [
            [
                (op, Counter(self.lowered.variants[job.number].intervention, op.point))
                for op in self.lowered[job.number]
            ]
            for job in chunk
        ]
        pictures = self._replay_pictures(chunk, counted, baseline)
        texts = [[pair for pair in mine if in_text(pair[0], baseline)] for mine in counted]
        rows = Rows(
            [[op for op, _ in mine] for mine in texts],
            [job.start for job in chunk],
            [[counter for _, counter in mine] for mine in texts],
            pictures,
        )
        n_new = self.measure.new_tokens
        replayed = replay(
            baseline, rows, n_last=self.measure.n_last, keep_cache=n_new > 1,
            wanted=self._wanted["text"],
        )  # fmt: skip
        for _, counter in (pair for mine in counted for pair in mine):
            counter.check()
        if isinstance(self.measure, Capture):
            read = [
                {**of_text, **(seen.read if seen else {})}
                for of_text, seen in zip(replayed.read, pictures, strict=True)
            ]
            places = self._wanted["text"] | self._wanted["pictures"]
            points = self.vlm.architecture.points
            measured = [self.measure.changed(self.plain, points, places, new) for new in read]
        else:
            tokens: list[Tensor | None] = [None] * len(chunk)
            if n_new:
                tokens = list(continue_greedily(self.vlm, self.prompt, baseline, replayed, n_new))
            measured = self._measured(replayed.logits, tokens)
        return {job.number: records for job, records in zip(chunk, measured, strict=True)}

    def _replay_pictures(
        self, chunk: list[Job], counted: list[list[tuple]], baseline: Baseline
    ) -> list[Repictured | None]:
        """What each variant makes of the pictures that it touches, `None` where it touches none."""
        found: list[Repictured | None] = [None] * len(chunk)
        acting = [i for i, job in enumerate(chunk) if job.start.part is not None]

        def together(i: int) -> tuple:
            part = chunk[i].start.part
            return part.layer, i if part.alone else -1

        for _, group in groupby(sorted(acting, key=together), key=together):
            members = list(group)
            made = baseline.tower.replay(
                [chunk[i].start.part for i in members],
                [[p for p in counted[i] if not in_text(p[0], baseline)] for i in members],
                self._wanted["pictures"],
            )
            for i, repictured in zip(members, made, strict=True):
                found[i] = repictured
        return found

    def _full(self, number: int) -> list[dict[str, Any]]:
        intervention = self.lowered.variants[number].intervention
        n_new = self.measure.new_tokens
        if isinstance(self.measure, Capture):
            return self.measure.run(self.vlm, self.prompt, intervention)
        if n_new:
            # generate computes the last position's logits only, and an edit may be at another
            edited = any(op.point == "hook_logits" for op in self.lowered[number])
            options = {"logits_to_keep": 0} if edited else {}
            generation = self.vlm.generate(
                self.prompt, max_new_tokens=n_new, interventions=intervention, **options
            )
            logits = torch.zeros(1, len(self.prompt), 1, 1)
            return self._measured(logits, [generation.tokens])[0]
        logits = self.vlm.run(self.prompt, interventions=intervention)
        return self._measured(logits[None, :, -self.measure.n_last :], [None])[0]

    def _measured(self, logits: Tensor, tokens: Sequence[Tensor | None]) -> list[list[dict]]:
        return [
            [
                self.measure.read(self.vlm, row, None if mine is None else mine[r])
                for r, row in enumerate(rows)
            ]
            for rows, mine in zip(logits, tokens, strict=True)
        ]
