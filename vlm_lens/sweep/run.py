"""Runs a sweep: records the plain run once, and computes of each variant what it can change."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from vlm_lens.engine.baseline import Baseline, NotReplayable, record
from vlm_lens.engine.replay import Rows, Start, replay, start_of
from vlm_lens.engine.run import Counter
from vlm_lens.errors import InterventionError
from vlm_lens.interventions.base import Target
from vlm_lens.prompt import Prompt
from vlm_lens.sweep.measures import Capture, Measure, as_measure, greedy
from vlm_lens.sweep.memory import free_bytes, row_bytes
from vlm_lens.sweep.result import SweepResult
from vlm_lens.sweep.store import SweepStore, identity
from vlm_lens.sweep.variants import Variant, expand

ENGINES = ("auto", "replay", "full")


@dataclass
class _Job:
    """A variant that will be replayed."""

    number: int
    variant: Variant
    start: Start


def sweep(
    vlm: Any,
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
    prompt, measure = vlm.as_prompt(prompt, images), as_measure(measure)
    listed = expand(variants, vlm.architecture.points)
    target = Target(vlm.architecture.points, prompt.layouts, vlm.facts)
    for variant in listed:  # what does not fit is refused before the first forward pass
        variant.intervention.lower(target)
    store = done = None
    if save is not None:
        store = SweepStore(save, identity(vlm, prompt, listed, measure))
        done = store.load()
    records: dict[int, list[dict[str, Any]]] = dict(done or {})
    runner = _Runner(vlm, prompt, target, measure, engine, memory)
    todo = [i for i in range(len(listed)) if i not in records]
    complete = True
    bar = tqdm(total=len(listed), initial=len(records), disable=not progress, unit="variant")
    try:
        with bar:
            for finished in runner.run(listed, todo):
                records.update(finished)
                if store is not None:
                    store.add(finished)
                bar.update(len(finished))
    except KeyboardInterrupt:
        complete = False
    rows = [
        {**dict(listed[i].labels), **({"row": r} if len(prompt) > 1 else {}), **measured}
        for i in sorted(records)
        for r, measured in enumerate(records[i])
    ]
    labels = tuple(dict.fromkeys(k for v in listed for k in v.labels))
    return SweepResult(
        rows, dict(runner.engines), dict(runner.reasons), runner.baseline_records, labels, complete,
        _places(listed, target),
    )  # fmt: skip


def _places(listed: Sequence[Variant], target: Target) -> dict[str, tuple[int, str]]:
    """Where the labels of positions lie in the prompt's first row, those that mean one position."""
    found: dict[str, tuple[int, str]] = {}
    layout = target.layouts[0]
    for variant in listed:
        label, at = variant.labels.get("at"), getattr(variant.intervention, "at", None)
        if not isinstance(label, str) or at is None or label in found:
            continue
        ops = variant.intervention.lower(target)
        if any(target.points[op.point].space != "text" or op.since is not None for op in ops):
            continue
        places = {p for op in ops for r, p in zip(op.rows, op.positions, strict=True) if r == 0}
        if len(places) == 1:
            position = places.pop()
            text = layout.strings[position] if layout.strings else str(layout.token_ids[position])
            found[label] = (position, text)
    return found


class _Runner:
    """Sorts variants to engines and runs them in chunks."""

    def __init__(
        self,
        vlm: Any,
        prompt: Prompt,
        target: Target,
        measure: Measure,
        engine: str,
        memory: int | None,
    ):
        self.vlm, self.prompt, self.target, self.measure = vlm, prompt, target, measure
        self.engine, self.memory = engine, memory
        self.engines: Tally[str] = Tally()
        self.reasons: Tally[str] = Tally()
        self.baseline_records: list[dict[str, Any]] = []

    def run(self, listed: Sequence[Variant], todo: Sequence[int]) -> Iterator[dict[int, list]]:
        """Finished variants, a chunk at a time."""
        if not todo:
            return
        baseline, reason = None, "asked for" if self.engine == "full" else ""
        if not reason:
            baseline, reason = self._record()
        if isinstance(self.measure, Capture):
            self.baseline_records = self.measure.run(self.vlm, self.prompt, ())
        elif not self.measure.new_tokens:
            plain = self.vlm.run(self.prompt) if baseline is None else baseline.logits
            plain = plain[None, :, -self.measure.n_last :]
            self.baseline_records = self._measured(plain, [None])[0]
        jobs, slow = [], []
        for number in todo:
            try:
                if baseline is None:
                    raise NotReplayable(reason)
                ops = listed[number].intervention.lower(self.target)
                jobs.append(_Job(number, listed[number], start_of(ops, baseline)))
            except NotReplayable as error:
                if self.engine == "replay":
                    raise
                self.reasons[str(error)] += 1
                slow.append(number)
        for chunk in self._chunks(jobs, baseline):
            self.engines["replay"] += len(chunk)
            yield self._replay(chunk, baseline)
        for number in slow:
            self.engines["full"] += 1
            yield {number: self._full(listed[number])}

    def _record(self) -> tuple[Baseline | None, str]:
        family = self.vlm.family
        if self.vlm._active:
            return None, "other interventions or hooks are open around the sweep"
        reason = family.not_replayable
        if isinstance(self.measure, Capture):
            reason = reason or "activations are captured in full runs"
        if self.measure.new_tokens > 1:
            reason = reason or family.not_continued
        if reason:
            if self.engine == "replay":
                raise NotReplayable(reason)
            return None, reason
        try:
            return record(
                self.vlm.hf_model, self.vlm.architecture, self.prompt.inputs,
                adds=family.adds_between_blocks,
            ), ""  # fmt: skip
        except NotReplayable as error:
            if self.engine == "replay":
                raise
            return None, str(error)

    def _chunks(self, jobs: list[_Job], baseline: Baseline | None) -> Iterator[list[_Job]]:
        """Variants of about the same suffix, as many as fit into memory."""
        if not jobs:
            return
        budget = self.memory or free_bytes(baseline.resid_pre[0].device)
        jobs = sorted(jobs, key=lambda j: (j.start.position, j.start.layer))
        chunk: list[_Job] = []
        for job in jobs:
            width = baseline.length - (chunk[0] if chunk else job).start.position
            cost = row_bytes(baseline, width, keep_cache=self.measure.new_tokens > 1)
            narrow = 2 * (baseline.length - job.start.position) <= width and width > 8
            if chunk and (narrow or (len(chunk) + 1) * cost > budget):
                yield chunk
                chunk = []
            chunk.append(job)
        yield chunk

    def _replay(self, chunk: list[_Job], baseline: Baseline) -> dict[int, list[dict[str, Any]]]:
        ops = [job.variant.intervention.lower(self.target) for job in chunk]
        counters = [
            [Counter(job.variant.intervention, op.point) for op in mine]
            for job, mine in zip(chunk, ops, strict=True)
        ]
        rows = Rows(ops, [job.start for job in chunk], counters)
        more = self.measure.new_tokens > 1
        replayed = replay(baseline, rows, n_last=self.measure.n_last, keep_cache=more)
        for counter in (c for mine in counters for c in mine):
            counter.check()
        tokens: list[Tensor | None] = [None] * len(chunk)
        if self.measure.new_tokens:
            tokens = list(self._continue(baseline, replayed))
        measured = self._measured(replayed.logits, tokens)
        return {job.number: records for job, records in zip(chunk, measured, strict=True)}

    def _continue(self, baseline: Baseline, replayed: Any) -> Tensor:
        """Greedy tokens of each variant, `[variants, rows, new_tokens]`."""
        logits = replayed.logits[:, :, -1]
        shape, model = logits.shape[:2], self.vlm.hf_model
        new = [greedy(logits).flatten()]
        mask = self.prompt.inputs.get("attention_mask")
        if mask is not None:
            mask = mask.repeat(shape[0], 1)
        ends = _end_tokens(model)
        following = baseline.next_positions
        if following is None:
            following = torch.full((shape[1],), baseline.length, device=logits.device)
        following = following.to(new[0]).repeat(shape[0])
        for step in range(1, self.measure.new_tokens):
            if ends and torch.isin(torch.stack(new), torch.tensor(ends).to(new[0])).any(0).all():
                break
            options: dict[str, Any] = {}
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
                options["attention_mask"] = mask
            position = (following + step - 1)[:, None]
            with torch.no_grad():
                out = model(
                    input_ids=new[-1][:, None], past_key_values=replayed.cache, use_cache=True,
                    position_ids=position, return_dict=True, **options,
                )  # fmt: skip
            new.append(greedy(out.logits[:, -1]))
        return _ended(torch.stack(new, -1), ends, _pad(model, self.vlm.tokenizer)).unflatten(
            0, shape
        )

    def _full(self, variant: Variant) -> list[dict[str, Any]]:
        n_new = self.measure.new_tokens
        if isinstance(self.measure, Capture):
            return self.measure.run(self.vlm, self.prompt, variant.intervention)
        if n_new:
            generation = self.vlm.generate(
                self.prompt, max_new_tokens=n_new, interventions=variant.intervention
            )
            logits = torch.zeros(1, len(self.prompt), 1, 1)
            return self._measured(logits, [generation.tokens])[0]
        logits = self.vlm.run(self.prompt, interventions=variant.intervention)
        return self._measured(logits[None, :, -self.measure.n_last :], [None])[0]

    def _measured(self, logits: Tensor, tokens: Sequence[Tensor | None]) -> list[list[dict]]:
        return [
            [
                self.measure.read(self.vlm, row, None if mine is None else mine[r])
                for r, row in enumerate(rows)
            ]
            for rows, mine in zip(logits, tokens, strict=True)
        ]


def _end_tokens(model: Any) -> list[int]:
    ends = model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _pad(model: Any, tokenizer: Any) -> int:
    pad = model.generation_config.pad_token_id
    return pad if pad is not None else getattr(tokenizer, "pad_token_id", None) or 0


def _ended(tokens: Tensor, ends: Sequence[int], pad: int) -> Tensor:
    """Tokens after a row's end replaced by padding, as generate gives them."""
    if not ends:
        return tokens
    ended = torch.isin(tokens, torch.tensor(ends).to(tokens)).long().cumsum(-1)
    after = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], -1) > 0
    return tokens.masked_fill(after, pad)
