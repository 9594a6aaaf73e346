"""The mean of an activation over a data set, as a value to ablate or patch with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from vlm_lens.errors import VectorError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.interventions.base import ModelFacts
from vlm_lens.interventions.origin import value_read_at
from vlm_lens.keywords import answering
from vlm_lens.layout.positions import All, Position, as_position
from vlm_lens.points.point import Point
from vlm_lens.points.table import NamesFilter
from vlm_lens.reading.many import as_list, logits_needed
from vlm_lens.serial import FrozenTensor, Savable, savable


@savable
@dataclass(frozen=True)
class Mean(Savable):
    """For each of some points, the mean of its activation over places of many prompts.

    Attributes:
        values: Point name -> the mean, `[d]` or `[heads, d_head]`.
        source: The model that it was read on.
        at: Over which places of each prompt.
        counts: Point name -> how many places entered the mean.
    """

    values: dict[str, FrozenTensor] = field(hash=False)
    source: ModelFacts
    at: Position
    counts: dict[str, int] = field(hash=False, repr=False)

    @classmethod
    @answering
    def of(
        cls,
        vlm: HookedModel,
        prompts: Sequence[Any] | Any,
        points: NamesFilter,
        *,
        at: Position | int | Sequence[int] | None = None,
    ) -> Self:
        """Reads the mean, every place of every prompt counting the same.

        Args:
            vlm: A HookedVLM.
            prompts: Texts, RawPrompts or Prompts, read one by one.
            points: The points, by name or glob.
            at: The places of each prompt; all but padding by default.

        Raises:
            VectorError: No prompts, or points of attention scores or patterns.
            PositionError: A prompt without such a place.
        """
        listed = as_list(prompts)
        if not listed:
            raise VectorError("A mean is taken over at least one prompt.")
        table = vlm.architecture.points
        names = table.match(points)
        patterns = [n for n in names if table[n].on_demand]
        if patterns:
            raise VectorError(
                f"A mean of {patterns[0]} over positions mixes queries that see different keys."
            )
        where = All() if at is None else as_position(at)
        if where.in_prompt is None:
            raise VectorError(f"{where} holds no position of a prompt.")
        totals: dict[str, Tensor] = {}
        counts = dict.fromkeys(names, 0)
        for one in listed:
            prompt = vlm.as_prompt(one)
            pairs = {
                space: [p for layout in prompt.layouts for p in where.resolve(layout, space)]
                for space in {table[n].space for n in names}
            }
            _, cache = vlm.run_with_cache(
                prompt, names_filter=names, last_logits=logits_needed(names)
            )
            for name in names:
                index = torch.tensor(pairs[table[name].space], dtype=torch.long)
                rows, positions = index.reshape(-1, 2).T
                chosen = cache[name][rows, positions].double()
                totals[name] = totals.get(name, 0) + chosen.sum(0).cpu()
                counts[name] += len(chosen)
        empty = [n for n in names if not counts[n]]
        if empty:
            raise VectorError(f"{where!r} holds no position of {empty[0]} in these prompts.")
        means = {n: FrozenTensor((totals[n] / counts[n]).to(vlm.dtype)) for n in names}
        return cls(means, vlm.facts, where, counts)

    def value_at(self, point: Point, model: ModelFacts, *, allow_transfer: bool = False) -> Tensor:
        """The mean at a point.

        Raises:
            VectorError: It was not read there, or on another model and `allow_transfer` is not
                given.
        """
        return value_read_at(
            self.values, point, self.source, model, what="mean", allow_transfer=allow_transfer
        )
