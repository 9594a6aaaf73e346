"""Steering: a vector added to an activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from vlm_lens.interventions.at_points import AtPoints
from vlm_lens.interventions.base import Place, Target
from vlm_lens.interventions.values import freeze_number, number_of
from vlm_lens.layout.positions import Position
from vlm_lens.ops import ADD, Op
from vlm_lens.serial import savable


@savable
@dataclass(frozen=True)
class Steer(AtPoints):
    """Adds `scale * vector` to an activation (Turner et al. 2023, activation addition).

    Attributes:
        point: A point, a glob, or a list of them.
        at: Where in the prompt; `Generated()` steers every new token.
        vector: What is added, of the forms that ActivationPatch takes.
        scale: What it is multiplied by; a tensor of one number where it is learned.
        heads: Which heads, at points that have them; all by default.
        allow_transfer: Lets a vector from another model of the same width be used.
    """

    point: str | tuple[str, ...]
    at: Position
    vector: Any
    scale: float | Any = 1.0
    heads: tuple[int, ...] | None = None
    allow_transfer: bool = False
    _value: ClassVar[str] = "vector"

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "scale", freeze_number(self.scale, "scale"))

    def op_at(self, place: Place, target: Target) -> Op:
        """An `add` op."""
        vector = self.shaped_at(place, target)
        return place.op(ADD, value=number_of(self.scale).to(vector) * vector)
