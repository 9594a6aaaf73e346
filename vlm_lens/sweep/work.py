"""The part of a sweep that is computed where the model is: in this process or in a worker's."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.measures.base import Measure, Record
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.sweep.plan import Lowered
from vlm_lens.sweep.runner import Runner
from vlm_lens.sweep.variants import Variant


@dataclass(frozen=True)
class Chunk:
    """Variants to be measured.

    Attributes:
        numbers: Which they are in the sweep.
        variants: They themselves, in this order; or all of the sweep, with their ops.
    """

    numbers: Sequence[int]
    variants: Sequence[Variant] | Lowered = field(repr=False)


@dataclass(frozen=True)
class Found:
    """What was measured.

    Attributes:
        records: Variant -> its records, one a row of the prompt.
        plain: Those of the plain run.
        engines: How many variants each engine computed.
        reasons: Why variants were not replayed: reason -> how many.
    """

    records: Mapping[int, list[Record]]
    plain: list[Record]
    engines: Tally[str]
    reasons: Tally[str]


@dataclass
class SweepWork:
    """Measures chunks of variants on one prompt; keeps the plain run between them.

    Attributes:
        prompt: The prompt, padded on the left.
        measure: What is measured.
        labels: The variants' labels.
        engine: As the user asked for it.
        memory: Bytes that variants which run together may take, if the user said so.
        needs_tower: Whether any variant changes tower or projector.
        known_plain: The records of the plain run, where they are known.
    """

    prompt: Prompt
    measure: Measure
    labels: Sequence[str]
    engine: str
    memory: int | None
    needs_tower: bool
    known_plain: list[Record] = field(default_factory=list)
    _runner: Runner | None = field(default=None, init=False, repr=False)

    def __call__(self, vlm: HookedModel, chunk: Chunk) -> Iterator[Found]:
        """The records of a chunk's variants, a few at a time."""
        whole = isinstance(chunk.variants, Lowered)
        if whole:
            lowered, todo = chunk.variants, chunk.numbers
        else:
            lowered = Lowered(vlm, self.prompt, chunk.variants)
            todo = range(len(chunk.numbers))
        runner = self._runner = self._runner or self._made(vlm, joint=whole)
        for records in runner.run(lowered, todo, self.labels):
            if not whole:
                records = {chunk.numbers[i]: measured for i, measured in records.items()}
            engines, reasons = runner.engines, runner.reasons
            runner.engines, runner.reasons = Tally(), Tally()
            yield Found(records, runner.plain, engines, reasons)

    def _made(self, vlm: HookedModel, *, joint: bool) -> Runner:
        runner = Runner(
            vlm, self.prompt, self.measure.bind(vlm, self.prompt), engine=self.engine,
            memory=self.memory, needs_tower=self.needs_tower, joint=joint,
        )  # fmt: skip
        runner.plain = self.known_plain
        return runner

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_runner": None}


__all__ = ["Chunk", "Found", "SweepWork"]
