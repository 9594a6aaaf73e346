"""Patching of many pairs: those whose prompts have one shape run as rows of one batch.

pairs a, b, c of one shape, spots 1, 2 of each

source        rows a, b, c                      one run
base          rows a, b, c                      one recorded run
variant 1     rows a1, b1, c1                   replayed; each row is measured on its own
variant 2     rows a2, b2, c2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from vlm_lens.errors import VLMLensError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.layout.cells import Cell
from vlm_lens.layout.position_map import position_map
from vlm_lens.measures import LogitDiff, LogProb, Measure
from vlm_lens.pairs.pair import Pair
from vlm_lens.patching.exact import Direction, Resolver, as_share, check_direction
from vlm_lens.patching.parts import NoDifference, Part, are_apart, patch_parts
from vlm_lens.patching.patch import At, Heads, Plan, plan_patches
from vlm_lens.points.table import NamesFilter
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.sweep.memory import free_bytes

_MOST = 16  # pairs of a batch; more are no faster


@dataclass(frozen=True, eq=False)
class Asked:
    """What is patched in each pair.

    Attributes:
        vlm: The model.
        points: Points of one kind.
        at: Places, or a function of the pair that gives them.
        heads: Which heads.
        window: Neighbouring blocks that are patched together.
        direction: `"denoise"` or `"noise"`.
        measure: What the differences are of; each pair's own if `None`.
        engine: As for `vlm.sweep`.
        memory: As for `vlm.sweep`.
    """

    vlm: HookedModel
    points: NamesFilter
    at: At
    heads: Heads
    window: int
    direction: Direction
    measure: Measure | None
    engine: str = "auto"
    memory: int | None = None

    def __post_init__(self):
        check_direction(self.direction)

    def identity(self) -> dict[str, object]:
        """What its numbers depend on, without the model."""
        names = {f.name for f in fields(self)} - {"vlm", "engine", "memory"}
        return {name: getattr(self, name) for name in sorted(names)}

    def plan(self, pair: Pair) -> Plan:
        """The spots of a pair, whose measure has been found to fit too."""
        pair.bind(self.vlm, self.measure)
        at = self.at(pair) if callable(self.at) else self.at
        return plan_patches(
            self.vlm, pair.positions, self.points, at=at, heads=self.heads, window=self.window
        )

    def batches(self, pairs: Sequence[Pair], numbers: Sequence[int]) -> Iterator[list[int]]:
        """Pairs by number: those of one shape together, as many as memory holds."""
        alike: dict[tuple, list[int]] = {}
        for i in numbers:
            alike.setdefault(_shape(pairs[i]), []).append(i)
        for mine in alike.values():
            most = self._most(pairs[mine[0]])
            yield from (mine[first : first + most] for first in range(0, len(mine), most))

    def shares(self, pairs: Sequence[Pair]) -> list[np.ndarray]:
        """The shares of pairs of one shape, NaN where there is no difference to share out."""
        clean, corrupt = (
            joined(self.vlm, [getattr(pair, side) for pair in pairs])
            for side in ("clean", "corrupt")
        )
        if clean is None or corrupt is None:
            return [share for pair in pairs for share in self.shares([pair])]
        swap = self.direction == "denoise"
        base, source = (corrupt, clean) if swap else (clean, corrupt)
        rows = [self._parts(pair, base, source, row, swap=swap) for row, pair in enumerate(pairs)]
        plan = self.plan(pairs[0])
        try:
            found = patch_parts(
                self.vlm, base, source, [_merged(parts) for parts in zip(*rows, strict=True)],
                measure=self.measure or _of_rows(pairs), engine=self.engine, memory=self.memory,
            )  # fmt: skip
        except NoDifference:
            return [plan.as_array(np.full(len(plan), np.nan))]
        ends = (found.there, found.here) if swap else (found.here, found.there)
        apart = are_apart(*ends)
        return [
            plan.as_array(
                as_share(values, a, b, self.direction) if real else np.full(len(values), np.nan)
            )
            for values, a, b, real in zip(found.values, *ends, apart, strict=True)
        ]

    def _parts(
        self, pair: Pair, base: Prompt, source: Prompt, row: int, *, swap: bool
    ) -> list[Part]:
        """The spots of a pair as parts, in the coordinates of its row of both batches."""
        resolver = Resolver(self.vlm, pair.positions, swap=swap)
        mine = (pair.corrupt, pair.clean) if swap else (pair.clean, pair.corrupt)
        here, there = (
            position_map(prompt.layout, batch.layouts[row])
            for prompt, batch in zip(mine, (base, source), strict=True)
        )
        moved: dict[int, tuple[tuple[Cell, Cell], ...]] = {}
        found = []
        for spot in self.plan(pair).spots:
            part = resolver.part(spot)
            if id(part.cells) not in moved:
                space = self.vlm.architecture.points[part.points[0]].space
                a, b = here.cells(space), there.cells(space)
                moved[id(part.cells)] = tuple((a[x], b[y]) for x, y in part.cells)
            found.append(Part(part.points, part.heads, moved[id(part.cells)]))
        return found

    def _most(self, pair: Pair) -> int:
        """How many pairs of this shape a batch holds."""
        size = self.vlm.architecture.decoder.stack.size
        length = max(len(pair.clean.layout), len(pair.corrupt.layout))
        kept = size.n_layers * (2 * size.n_key_value_heads * size.d_head + 2 * size.d_model)
        budget = self.memory or free_bytes(self.vlm.hf_model)
        return max(1, min(_MOST, budget // (8 * kept * length)))


def joined(vlm: HookedModel, prompts: Sequence[Prompt]) -> Prompt | None:
    """Prompts of one shape as one batch; `None` where the model reads them otherwise."""
    if len(prompts) == 1:
        return prompts[0]
    tensors = {name: torch.cat([p.inputs[name] for p in prompts]) for name in prompts[0].inputs}
    pictures = tuple(shown for p in prompts for shown in p.images)
    try:
        made = vlm.prompts.from_tensors(
            tensors,
            sizes=[picture.size for shown in pictures for picture in shown] or None,
            texts=tuple(text for p in prompts for text in p.texts),
            images=pictures,
        )
    except VLMLensError:
        return None
    alike = len(made) == len(prompts) and all(
        (one.token_ids, one.kinds) == (prompt.layout.token_ids, prompt.layout.kinds)
        for one, prompt in zip(made.layouts, prompts, strict=True)
    )
    return made if alike else None


def _shape(pair: Pair) -> tuple:
    """What pairs must share to be rows of one batch."""
    shapes = [
        tuple((name, tuple(value.shape)) for name, value in prompt.inputs.items())
        for prompt in (pair.clean, pair.corrupt)
    ]
    sizes = [
        tuple(picture.size for shown in prompt.images for picture in shown)
        for prompt in (pair.clean, pair.corrupt)
    ]
    return tuple(shapes), tuple(sizes), pair.other is None


def _merged(rows: Sequence[Part]) -> list[Part]:
    """A spot of every pair as one part."""
    cells = rows[0].cells if len(rows) == 1 else tuple(c for part in rows for c in part.cells)
    return [Part(rows[0].points, rows[0].heads, cells)]


def _of_rows(pairs: Sequence[Pair]) -> Measure:
    """Each pair's own measure, row by row."""
    answers = tuple(pair.answer for pair in pairs)
    if pairs[0].other is None:
        return LogProb(answers)
    return LogitDiff(answers, tuple(pair.other for pair in pairs))
