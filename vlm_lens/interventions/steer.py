"""Steering: a vector added to an activation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from vlm_lens.errors import InterventionError
from vlm_lens.interventions.base import (
    Intervention,
    Target,
    freeze_heads,
    freeze_points,
    places,
)
from vlm_lens.interventions.shapes import shaped
from vlm_lens.interventions.values import freeze_value, value_for
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.ops import ADD, Op
from vlm_lens.serial import savable


@savable
@dataclass(frozen=True)
class Steer(Intervention):
    """Adds `scale * vector` to an activation (Turner et al. 2023, activation addition).

    Attributes:
        point: A point, a glob, or a list of them.
        at: Where in the prompt; `Generated()` steers every new token.
        vector: What is added, of the forms that ActivationPatch takes.
        scale: What it is multiplied by.
        heads: Which heads, at points that have them; all by default.
        allow_transfer: Lets a vector from another model of the same width be used.
    """

    point: str | tuple[str, ...]
    at: Position
    vector: Any
    scale: float = 1.0
    heads: tuple[int, ...] | None = None
    allow_transfer: bool = False

    def __post_init__(self):
        points, at = freeze_points(self.point), as_position(self.at)
        object.__setattr__(self, "vector", freeze_value(self.vector, points, at))
        object.__setattr__(self, "point", points if len(points) > 1 else points[0])
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "scale", float(self.scale))
        if not math.isfinite(self.scale):
            raise InterventionError(f"scale={self.scale} is no factor: give a finite number.")
        object.__setattr__(self, "heads", freeze_heads(self.heads))

    def lower(self, target: Target) -> list[Op]:
        """One `add` op a point."""
        ops = []
        for place in places(target, freeze_points(self.point), self.at, self.heads):
            vector = value_for(self.vector, place.point, target, allow_transfer=self.allow_transfer)
            ops.append(place.op(ADD, value=self.scale * shaped(vector, place)))
        return ops
