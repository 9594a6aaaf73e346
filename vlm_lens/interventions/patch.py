"""Activation patching: an activation replaced by another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from vlm_lens.interventions.at_points import AtPoints
from vlm_lens.interventions.base import Place, Target
from vlm_lens.layout.positions import Position
from vlm_lens.ops import SET, Op
from vlm_lens.serial import savable


@savable
@dataclass(frozen=True)
class ActivationPatch(AtPoints):
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
    _value: ClassVar[str] = "value"

    def op_at(self, place: Place, target: Target) -> Op:
        """A `set` op."""
        return place.op(SET, value=self.shaped_at(place, target))
