"""Scaling and clamping: an activation multiplied, or held within limits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import torch

from vlm_lens.errors import InterventionError
from vlm_lens.interventions.at_points import AtPoints
from vlm_lens.interventions.base import Place, Target
from vlm_lens.interventions.shapes import shaped
from vlm_lens.layout.positions import Position
from vlm_lens.ops import CLAMP, SCALE, Op
from vlm_lens.serial import savable


@savable
@dataclass(frozen=True)
class Scale(AtPoints):
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
    _value: ClassVar[str] = "factor"

    def op_at(self, place: Place, target: Target) -> Op:
        """A `scale` op."""
        return place.op(SCALE, value=self.shaped_at(place, target))


@savable
@dataclass(frozen=True)
class Clamp(AtPoints):
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
        super().__post_init__()
        for limit in (self.low, self.high):
            if limit is not None and not isinstance(limit, Real):
                raise InterventionError(f"A limit of Clamp is a number, not {limit!r:.60}.")
        low = -math.inf if self.low is None else float(self.low)
        high = math.inf if self.high is None else float(self.high)
        if math.isinf(low) and math.isinf(high):
            raise InterventionError(
                "Clamp takes low=, high= or both; with neither it does nothing."
            )
        if not low <= high:
            raise InterventionError(f"Clamp takes low <= high, not {low} and {high}.")

    def op_at(self, place: Place, target: Target) -> Op:
        """A `clamp` op."""
        low, high = (
            torch.tensor(limit if given is None else float(given))
            for given, limit in ((self.low, -math.inf), (self.high, math.inf))
        )
        return place.op(CLAMP, low=shaped(low, place), high=shaped(high, place))
