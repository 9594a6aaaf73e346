"""Activations of many prompts at corresponding places, each prompt's kept by itself."""

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
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.points.point import Point
from vlm_lens.points.table import NamesFilter
from vlm_lens.reading.many import as_list
from vlm_lens.serial import FrozenTensor, Savable, savable


@savable
@dataclass(frozen=True)
class Samples(Savable):
    """For each of some points, its activations at some places of several prompts.

    Attributes:
        values: Point name -> `[prompts, positions, d]` or `[prompts, positions, heads, d_head]`.
        source: The model that they were read on.
        at: At which places of each prompt.
    """

    values: dict[str, FrozenTensor] = field(hash=False)
    source: ModelFacts
    at: Position

    @classmethod
    @answering
    def of(
        cls,
        vlm: HookedModel,
        prompts: Sequence[Any] | Any,
        points: NamesFilter,
        *,
        at: Position | int | Sequence[int],
    ) -> Self:
        """Reads the activations of prompts, one by one.

        Args:
            vlm: A HookedVLM.
            prompts: Texts, RawPrompts or Prompts.
            points: The points, by name or glob.
            at: The places, as many in each prompt.

        Raises:
            VectorError: No prompts, points of attention scores or patterns, or prompts that have
                other numbers of such places.
            PositionError: A prompt without such a place.
        """
        listed, where = as_list(prompts), as_position(at)
        if not listed:
            raise VectorError("Samples are of at least one prompt.")
        names = vlm.architecture.points.match(points)
        patterns = [n for n in names if vlm.architecture.points[n].on_demand]
        if patterns:
            raise VectorError(f"{patterns[0]} of another prompt has other keys than this one's.")
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        for one in listed:
            _, cache = vlm.run_with_cache(one, names_filter=names, positions=where, last_logits=1)
            for name in names:
                found[name] += list(cache[name].cpu())
        for name, values in found.items():
            counts = sorted({len(v) for v in values})
            if len(counts) > 1:
                raise VectorError(
                    f"{where} holds {' or '.join(map(str, counts))} positions of {name} in these "
                    "prompts: take places that correspond, pictures of one size for example."
                )
        frozen = {name: FrozenTensor(torch.stack(values)) for name, values in found.items()}
        return cls(frozen, vlm.facts, where)

    def __len__(self) -> int:
        return len(next(iter(self.values.values())).data)

    def value_at(self, point: Point, model: ModelFacts, *, allow_transfer: bool = False) -> Tensor:
        """The activations at a point, `[prompts, positions, ...]`.

        Raises:
            VectorError: They were not read there, or on another model and `allow_transfer` is not
                given.
        """
        return value_read_at(
            self.values,
            point,
            self.source,
            model,
            what="set of samples",
            allow_transfer=allow_transfer,
        )
