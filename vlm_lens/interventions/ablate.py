"""Ablation: an activation knocked out, by zero, by a mean, or by a given value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vlm_lens.errors import InterventionError
from vlm_lens.interventions.base import (
    Intervention,
    Target,
    freeze_heads,
    freeze_points,
    places,
    pool_of,
    shaped,
)
from vlm_lens.interventions.values import freeze_value, value_for
from vlm_lens.layout.positions import Generated, Position, as_position
from vlm_lens.ops import MEAN, SET, Op
from vlm_lens.serial import savable


@savable
@dataclass(frozen=True)
class Ablate(Intervention):
    """Takes an activation's information away.

    Attributes:
        point: A point, a glob, or a list of them.
        at: Where in the prompt.
        by: `"zero"`; `"mean"`, the activation's mean over all positions of the same prompt (of the
            same picture, at tower and projector), padding left out, in the same run; or a tensor,
            for example a mean over a data set.
        heads: Which heads, at points that have them; all by default.
    """

    point: str | tuple[str, ...]
    at: Position
    by: Any = "zero"
    heads: tuple[int, ...] | None = None

    def __post_init__(self):
        points, at = freeze_points(self.point), as_position(self.at)
        if isinstance(self.by, str):
            if self.by not in ("zero", "mean"):
                raise InterventionError(
                    f"Ablate takes 'zero', 'mean' or a tensor; it got {self.by!r}."
                )
            if self.by == "mean" and isinstance(at, Generated):
                raise InterventionError(
                    "A mean over positions is not known while tokens are generated one by one: "
                    "give the mean as a tensor."
                )
        else:
            object.__setattr__(self, "by", freeze_value(self.by, points, at))
        object.__setattr__(self, "point", points if len(points) > 1 else points[0])
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "heads", freeze_heads(self.heads))

    def lower(self, target: Target) -> list[Op]:
        """One op a point."""
        ops = []
        for place in places(target, freeze_points(self.point), self.at, self.heads):
            if self.by == "mean":
                if place.point.on_demand:
                    raise InterventionError(
                        f"A mean over positions of {place.point.name} mixes queries that see "
                        "different keys: ablate it by 'zero' or by a tensor."
                    )
                ops.append(place.op(MEAN, pool=pool_of(target, place)))
                continue
            if self.by == "zero":
                value = torch.zeros(())
            else:
                value = value_for(self.by, place.point, target.model, allow_transfer=False)
            ops.append(place.op(SET, value=shaped(value, place)))
        return ops
