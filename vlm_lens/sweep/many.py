"""Many variants of many prompts: prompts of like length run together, and memory stays flat.

```
prompts --batches of like length--> plain run + variants --> one file a batch --> records by prompt
```
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from vlm_lens.distributed import Workers, opened
from vlm_lens.errors import PromptError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.integers import as_integer
from vlm_lens.measures.answers import for_rows
from vlm_lens.measures.base import Measure, Record
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.reading.many import Batch, batches, content_of
from vlm_lens.sweep.plan import Lowered
from vlm_lens.sweep.result import SweepResult
from vlm_lens.sweep.runner import Runner, check_labels
from vlm_lens.sweep.store import BatchStore, identity
from vlm_lens.sweep.variants import Variant
from vlm_lens.sweep.work import Found

_RECENT = 4  # batches whose records are in memory


@dataclass(frozen=True)
class Measured(Found):
    """What was measured of a batch of prompts.

    Attributes:
        rows: The numbers of its prompts.
    """

    rows: tuple[int, ...]


@dataclass(frozen=True)
class ManyWork:
    """Measures all variants on a batch of prompts.

    Attributes:
        variants: The variants.
        measure: What is measured.
        labels: The variants' labels.
        engine: As the user asked for it.
        memory: Bytes that variants which run together may take, if the user said so.
        n_prompts: How many prompts there are in all.
    """

    variants: Sequence[Variant] = field(repr=False)
    measure: Measure
    labels: Sequence[str]
    engine: str
    memory: int | None
    n_prompts: int

    def prepared(self, vlm: HookedModel, batch: Batch) -> tuple[Runner, Lowered]:
        """What runs a batch, and the variants on it.

        Raises:
            VLMLensError: Something does not fit a prompt of the batch.
        """
        prompt = vlm.prompts.left_padded(vlm.as_prompt(batch.prompts))
        bound = for_rows(self.measure, batch.rows, self.n_prompts).bind(vlm, prompt)
        check_labels(self.labels, bound.columns)
        lowered = Lowered(vlm, prompt, self.variants, batch.rows, self.n_prompts)
        runner = Runner(
            vlm, prompt, bound, engine=self.engine, memory=self.memory,
            needs_tower=lowered.needs_tower,
        )  # fmt: skip
        return runner, lowered

    def __call__(self, vlm: HookedModel, batch: Batch) -> Iterator[Measured]:
        """The records of a batch."""
        runner, lowered = self.prepared(vlm, batch)
        records: dict[int, list[Record]] = {}
        for found in runner.run(lowered, range(len(self.variants)), self.labels):
            records.update(found)
        yield Measured(records, runner.plain, runner.engines, runner.reasons, batch.rows)


def sweep_many(
    vlm: HookedModel, prompts: list[RawPrompt], batch_size: int, work: ManyWork, *, save: Any,
    on: Any, progress: bool,
) -> SweepResult:  # fmt: skip
    """Measures variants on many prompts; see `HookedVLM.sweep`.

    Raises:
        VLMLensError: A variant does not fit the model or a prompt; nothing has run then.
    """
    if as_integer(batch_size, "batch_size", PromptError) < 1:
        raise PromptError(f"batch_size is at least 1, not {batch_size}.")
    for batch in batches(vlm, prompts, batch_size):
        work.prepared(vlm, batch)
    sweeping = _Many(vlm, prompts, batch_size, work, progress)
    if save is None:
        with opened(on, vlm) as workers:
            complete = sweeping.run(workers)
    else:
        asked = [content_of(p) for p in prompts], batch_size
        with BatchStore(save, identity(vlm, asked, work.variants, work.measure)) as store:
            done = frozenset(store.places())
            if left := len(done) < len(prompts):
                store.must_be_writable()
            sweeping.store = store
            with opened(on if left else None, vlm) as workers:
                complete = sweeping.run(workers, done)
    return sweeping.result(complete)


class _Many:
    def __init__(
        self, vlm: HookedModel, prompts: list[RawPrompt], batch_size: int, work: ManyWork,
        progress: bool,
    ):  # fmt: skip
        self._vlm, self._prompts, self._size, self._work = vlm, prompts, batch_size, work
        self._progress = progress
        self.store: BatchStore | None = None
        self._held: dict[int, tuple[Measured, int]] = {}  # row -> its batch, and where in it
        self._plain: dict[int, Record] = {}
        self._engines: Tally[str] = Tally()
        self._reasons: Tally[str] = Tally()

    def run(self, workers: Workers, done: frozenset[int] = frozenset()) -> bool:
        """Measures the prompts that are not done; whether that came to its end."""
        left = batches(self._vlm, self._prompts, self._size, done)
        bar = tqdm(
            total=len(self._prompts), initial=len(done), disable=not self._progress, unit="prompt"
        )
        try:
            with bar:
                for found in workers.run(self._work, left):
                    self._engines.update(found.engines)
                    self._reasons.update(found.reasons)
                    if self.store is not None:
                        self.store.add(found.rows, found.records, found.plain)
                    else:
                        self._held.update((r, (found, i)) for i, r in enumerate(found.rows))
                    bar.update(len(found.rows))
        except KeyboardInterrupt:
            return False
        return True

    def result(self, complete: bool) -> SweepResult:
        """What was measured, by prompt and then by variant."""
        labels = [dict(v.labels) for v in self._work.variants]
        if self.store is not None:
            records: Sequence[Record] = StoredRecords(self.store.places(), labels)
            plain = [p for _, p in sorted(self.store.plain().items())]
        else:
            records = [
                {**labels[n], "row": row, **batch.records[n][place]}
                for row, (batch, place) in sorted(self._held.items())
                for n in range(len(labels))
            ]
            plain = [b.plain[i] for _, (b, i) in sorted(self._held.items()) if b.plain]
        return SweepResult(
            records, dict(self._engines), dict(self._reasons), plain, tuple(self._work.labels),
            complete,
        )  # fmt: skip


class StoredRecords(Sequence[Record]):
    """Records in a sweep's folder, read when they are asked for.

    Args:
        places: Prompt -> the file of its batch and its place in it.
        labels: The labels of each variant.
    """

    def __init__(self, places: Mapping[int, tuple[Path, int]], labels: list[dict[str, Any]]):
        self._places, self._labels = sorted(places.items()), labels
        self._read = lru_cache(_RECENT)(BatchStore.read)

    def __len__(self) -> int:
        return len(self._places) * len(self._labels)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"There are {len(self)} records, not {index}.")
        place, variant = divmod(index % len(self), len(self._labels))
        row, (path, i) = self._places[place]
        return {**self._labels[variant], "row": row, **self._read(path)[variant][i]}


def refuse_made(prompt: Any) -> None:
    """Refuses prompts that were made already, which cannot be put into batches of like length.

    Raises:
        PromptError: It is a Prompt, or tensors.
    """
    if isinstance(prompt, Prompt | Mapping):
        raise PromptError(
            "batch_size= puts texts of like length together: give a list of texts or RawPrompts, "
            "or leave batch_size= out for a prompt that is made."
        )


__all__ = ["ManyWork", "StoredRecords", "refuse_made", "sweep_many"]
