"""Activation patching: an activation replaced by another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
from vlm_lens.ops import SET, Op
from vlm_lens.serial import savable


@savable
@dataclass(frozen=True)
class ActivationPatch(Intervention):
    """Replaces an activation (Meng et al. 2022; for task vectors Hendel et al. 2023).

    Attributes:
        point: A point, a glob, or a list of them.
        at: Where in the prompt.
        value: What is written: a number; a tensor `[d]`, `[positions, d]` or
            `[batch, positions, d]`, `d` being `[heads, d_head]` at points with heads (see
            `interventions.shapes`); a TaskVector or VectorEnsemble, which gives each layer its own
            vector; or an ActivationCache of another run, whose values are read at the same
            point and at `at` in that run's own prompt.
        heads: Which heads, at points that have them; all by default.
        allow_transfer: Lets a vector from another model of the same width be used.
    """

    point: str | tuple[str, ...]
    at: Position
    value: Any
    heads: tuple[int, ...] | None = None
    allow_transfer: bool = False

    def __post_init__(self):
        points, at = freeze_points(self.point), as_position(self.at)
        object.__setattr__(self, "value", freeze_value(self.value, points, at))
        object.__setattr__(self, "point", points if len(points) > 1 else points[0])
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "heads", freeze_heads(self.heads))

    def lower(self, target: Target) -> list[Op]:
        """One `set` op a point."""
        ops = []
        for place in places(target, freeze_points(self.point), self.at, self.heads):
            value = value_for(self.value, place.point, target, allow_transfer=self.allow_transfer)
            ops.append(place.op(SET, value=shaped(value, place)))
        return ops
