"""Which variants of a sweep are replayed, from where, and which run together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from vlm_lens.engine.baseline import Baseline
from vlm_lens.engine.not_replayable import NotReplayable
from vlm_lens.engine.start import Start, start_of
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.interventions.base import Target
from vlm_lens.ops import Op
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.sweep.memory import row_bytes
from vlm_lens.sweep.variants import Variant

_KEPT = 1 << 20  # numbers in ops kept between their uses; more are made anew
_OF_AN_OP = 32  # about what it takes beside its cells and values


class Lowered:
    """Variants and their ops, each made once as far as memory allows.

    Args:
        vlm: The model.
        prompt: The prompt.
        variants: The variants.
        rows: Which of many prompts the rows of this one are, where they run in batches.
        n_prompts: How many prompts there are then.

    Raises:
        VLMLensError: A variant does not fit the model or the prompt.
    """

    def __init__(
        self, vlm: HookedModel, prompt: Prompt, variants: Sequence[Variant],
        rows: tuple[int, ...] = (), n_prompts: int = 0,
    ):  # fmt: skip
        points, layouts = vlm.architecture.points, prompt.layouts
        target = Target(points, layouts, lambda: vlm.facts, rows, n_prompts)
        self.variants, self._target = variants, target
        self._kept: dict[int, list[Op]] = {}
        self._shared: dict[tuple[int, ...], tuple[int, ...]] = {}  # rows, positions of many ops
        self._size = 0
        self.needs_tower = False
        self.places: dict[str, tuple[str, tuple[tuple[int, int], ...]]] = {}
        for number in range(len(variants)):
            ops = self[number]
            self.needs_tower |= any(target.points[op.point].space != "text" for op in ops)
            self._note_place(variants[number], ops)

    def __getitem__(self, number: int) -> list[Op]:
        if number in self._kept:
            return self._kept[number]
        ops = self.variants[number].intervention.lower(self._target)
        if self._size <= _KEPT:
            ops = self._kept[number] = [self._sharing(op) for op in ops]
        return ops

    def _sharing(self, op: Op) -> Op:
        """An op whose rows and positions are those of earlier ops, where they are equal."""
        self._size += _OF_AN_OP
        for cells in (op.rows, op.positions):
            if cells not in self._shared:
                self._shared[cells] = cells
                self._size += len(cells)
        rows, positions = self._shared[op.rows], self._shared[op.positions]
        if rows is op.rows and positions is op.positions:
            return op
        return replace(op, rows=rows, positions=positions)

    def _note_place(self, variant: Variant, ops: Sequence[Op]) -> None:
        """Where the label of a position lies, if it means one place of each row of the prompt."""
        label, at = variant.labels.get("at"), getattr(variant.intervention, "at", None)
        spaces = {self._target.points[op.point].space for op in ops}
        if not isinstance(label, str) or at is None or label in self.places or len(spaces) > 1:
            return
        if any(op.since is not None for op in ops):
            return
        space = spaces.pop()
        found = [at.resolve(layout, space) for layout in self._target.layouts]
        if all(len(pairs) == 1 for pairs in found):
            self.places[label] = space, tuple(pairs[0] for pairs in found)


@dataclass(frozen=True)
class Job:
    """A variant that will be replayed."""

    number: int
    start: Start


def plan(
    lowered: Lowered,
    todo: Sequence[int],
    baseline: Baseline,
    refuses: Callable[[Start], str] = lambda start: "",
) -> tuple[list[Job], dict[int, str]]:
    """Sorts variants into those that can be replayed and those that cannot, with the reason.

    Args:
        lowered: The variants.
        todo: Which of them are wanted.
        baseline: The recorded run.
        refuses: Says of a start why it is refused, if it is.
    """
    jobs, slow = [], {}
    for number in todo:
        try:
            job = Job(number, start_of(lowered[number], baseline))
        except NotReplayable as error:
            slow[number] = str(error)
            continue
        if reason := refuses(job.start):
            slow[number] = reason
        else:
            jobs.append(job)
    return jobs, slow


def chunks(
    jobs: Sequence[Job], baseline: Baseline, budget: int, *, keep_cache: bool
) -> Iterator[list[Job]]:
    """Variants of about the same suffix, as many as fit into memory."""

    def key(job: Job) -> tuple[int, int, int]:
        return job.start.position, job.start.layer, job.start.tower.layer if job.start.tower else -1

    chunk: list[Job] = []
    total = 0
    for job in sorted(jobs, key=key):
        width = baseline.length - (chunk[0] if chunk else job).start.position
        cost = row_bytes(baseline, width, job.start.tower, keep_cache=keep_cache)
        narrow = 2 * (baseline.length - job.start.position) <= width and width > 8
        if chunk and (narrow or total + cost > budget):
            yield chunk
            chunk, total = [], 0
        chunk.append(job)
        total += cost
    if chunk:
        yield chunk
