"""Runs a sweep: records the plain run once, and computes of each variant what it can change."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm.auto import tqdm

from vlm_lens.distributed import Here, Workers, opened
from vlm_lens.engine.engines import ENGINES as OF_RUNS
from vlm_lens.errors import InterventionError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.integers import as_integer
from vlm_lens.measures.base import Record
from vlm_lens.measures.named import as_measure
from vlm_lens.prompts.maker import raw_prompts
from vlm_lens.sweep.many import ManyWork, refuse_made, sweep_many
from vlm_lens.sweep.plan import Lowered
from vlm_lens.sweep.result import SweepResult
from vlm_lens.sweep.runner import check_labels
from vlm_lens.sweep.store import SweepStore, identity
from vlm_lens.sweep.variants import Variant, expand
from vlm_lens.sweep.work import Chunk, SweepWork

ENGINES = ("auto", "replay", "full")
_EACH = 4  # chunks that each worker gets, so that one that is slow does not hold up the others
_MOST = 512  # rows in a chunk: what a worker that dies loses, and what is sent back at once


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
    on: Any = None,
    batch_size: int | None = None,
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
    # what does not fit is refused before the first forward pass
    measure, listed = as_measure(measure), expand(variants, vlm.architecture.points)
    labels = tuple(dict.fromkeys(k for v in listed for k in v.labels))
    if batch_size is not None:
        refuse_made(prompt)
        raws = raw_prompts(prompt, images)
        many = ManyWork(listed, measure, labels, engine, memory, len(raws))
        return sweep_many(vlm, raws, batch_size, many, save=save, on=on, progress=progress)
    prompt = vlm.prompts.left_padded(vlm.as_prompt(prompt, images))
    bound = measure.bind(vlm, prompt)
    check_labels(labels, bound.columns)
    lowered = Lowered(vlm, prompt, listed)
    work = SweepWork(prompt, measure, labels, engine, memory, lowered.needs_tower)
    sweeping = _Sweeping(work, listed, lowered, progress)
    if save is None:
        with opened(on, vlm) as workers:
            complete = sweeping.run(workers, None)
    else:
        read = prompt.inputs, prompt.layouts
        with SweepStore(save, identity(vlm, read, listed, measure)) as store:
            sweeping.load(store)
            with opened(on if sweeping.todo else None, vlm) as workers:
                complete = sweeping.run(workers, store)
    rows = [
        {**dict(listed[i].labels), **({"row": r} if len(prompt) > 1 else {}), **measured}
        for i in sorted(sweeping.records)
        for r, measured in enumerate(sweeping.records[i])
    ]
    return SweepResult(
        rows, dict(sweeping.engines), dict(sweeping.reasons), sweeping.plain, labels, complete,
        lowered.places, prompt.layouts, prompt.images or (),
    )  # fmt: skip


class _Sweeping:
    """What is measured so far, and what is left.

    Attributes:
        records: Variant -> its records, one a row of the prompt.
        plain: The records of the plain run.
        engines: How many variants each engine computed.
        reasons: Why variants were not replayed: reason -> how many.
    """

    def __init__(
        self, work: SweepWork, variants: Sequence[Variant], lowered: Lowered, progress: bool
    ):
        self._work, self._variants, self._lowered = work, variants, lowered
        self._progress = progress
        self.records: dict[int, list[Record]] = {}
        self.plain: list[Record] = []
        self.engines: Tally[str] = Tally()
        self.reasons: Tally[str] = Tally()

    def load(self, store: SweepStore) -> None:
        """Takes over what was finished before.

        Raises:
            StoreError: Something is left to do, and the folder cannot be written to.
        """
        self.records, self.plain = store.load(), store.load_plain()
        if self.todo:
            store.must_be_writable()

    @property
    def todo(self) -> list[int]:
        """The variants that are not measured yet."""
        return [i for i in range(len(self._variants)) if i not in self.records]

    def run(self, workers: Workers, store: SweepStore | None) -> bool:
        """Measures what is left; whether that came to its end."""
        self._work.known_plain = self.plain
        bar = tqdm(
            total=len(self._variants), initial=len(self.records), disable=not self._progress,
            unit="variant",
        )  # fmt: skip
        try:
            with bar:
                for found in workers.run(self._work, self._chunks(workers)):
                    self.records.update(found.records)
                    self.plain = self.plain or found.plain
                    self.engines.update(found.engines)
                    self.reasons.update(found.reasons)
                    if store is not None:
                        store.add_plain(self.plain)
                        store.add(found.records)
                    bar.update(len(found.records))
        except KeyboardInterrupt:
            return False
        return True

    def _chunks(self, workers: Workers) -> Iterator[Chunk]:
        todo = self.todo
        if isinstance(workers, Here):
            yield Chunk(todo, self._lowered)
            return
        size = min(
            -(-len(todo) // (_EACH * workers.n)), max(1, _MOST // len(self._work.prompt))
        )  # fmt: skip
        for first in range(0, len(todo), size or 1):
            numbers = todo[first : first + size]
            yield Chunk(numbers, [self._variants[i] for i in numbers])
