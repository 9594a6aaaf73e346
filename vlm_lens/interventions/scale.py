"""Scaling and clamping: an activation multiplied, or held within limits."""

from __future__ import annotations

import math
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
)
from vlm_lens.interventions.shapes import shaped
from vlm_lens.interventions.values import freeze_value, value_for
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.ops import CLAMP, SCALE, Op
from vlm_lens.serial import savable


@savable
@dataclass(frozen=True)
class Scale(Intervention):
    """Multiplies an activation, for example the output of single heads.

    Attributes:
        point: A point, a glob, or a list of them.
        at: Where in the prompt; `Generated()` scales at every new token.
        factor: A number, or a tensor of the forms that ActivationPatch takes.
        heads: Which heads, at points that have them; all by default.
    """

    point: str | tuple[str, ...]
    at: Position
    factor: Any
    heads: tuple[int, ...] | None = None

    def __post_init__(self):
        points, at = freeze_points(self.point), as_position(self.at)
        object.__setattr__(self, "factor", freeze_value(self.factor, points, at))
        object.__setattr__(self, "point", points if len(points) > 1 else points[0])
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "heads", freeze_heads(self.heads))

    def lower(self, target: Target) -> list[Op]:
        """One `scale` op a point."""
        return [
            place.op(
                SCALE,
                value=shaped(
                    value_for(self.factor, place.point, target, allow_transfer=False), place
                ),
            )
            for place in places(target, freeze_points(self.point), self.at, self.heads)
        ]


@savable
@dataclass(frozen=True)
class Clamp(Intervention):
    """Holds every entry of an activation within limits.

    Attributes:
        point: A point, a glob, or a list of them.
        at: Where in the prompt; `Generated()` clamps at every new token.
        low: The smallest value; none by default.
        high: The largest value; none by default.
        heads: Which heads, at points that have them; all by default.
    """

    point: str | tuple[str, ...]
    at: Position
    low: float | None = None
    high: float | None = None
    heads: tuple[int, ...] | None = None

    def __post_init__(self):
        points = freeze_points(self.point)
        low = -math.inf if self.low is None else float(self.low)
        high = math.inf if self.high is None else float(self.high)
        if math.isinf(low) and math.isinf(high):
            raise InterventionError(
                "Clamp takes low=, high= or both; with neither it does nothing."
            )
        if not low <= high:
            raise InterventionError(f"Clamp takes low <= high, not {low} and {high}.")
        object.__setattr__(self, "point", points if len(points) > 1 else points[0])
        object.__setattr__(self, "at", as_position(self.at))
        object.__setattr__(self, "heads", freeze_heads(self.heads))

    def lower(self, target: Target) -> list[Op]:
        """One `clamp` op a point."""
        low, high = (
            torch.tensor(limit if given is None else float(given))
            for given, limit in ((self.low, -math.inf), (self.high, math.inf))
        )
        return [
            place.op(CLAMP, low=shaped(low, place), high=shaped(high, place))
            for place in places(target, freeze_points(self.point), self.at, self.heads)
        ]
