"""Projecting away: what points along a direction taken out, where it points along it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from vlm_lens.errors import InterventionError
from vlm_lens.interventions.base import Intervention, Target, freeze_points, places
from vlm_lens.interventions.values import freeze_value, value_for
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.ops import REMOVE, Op
from vlm_lens.serial import savable


@savable
@dataclass(frozen=True)
class ProjectAway(Intervention):
    """Takes a direction out of an activation where it is there: `h - gamma max(h.t, 0) / |t|^2 t`.

    Jiang et al. 2025 (arXiv 2410.02762) take the hidden state of an object's name, from text, out
    of the positions of a picture. `Remove` takes it out whatever its sign.

    Attributes:
        point: A point, a glob, or a list of them.
        at: Where in the prompt: `Images()`.
        direction: `[d]`, or a TaskVector or Direction, which gives each layer its own.
        gamma: How much of it is taken: 1 takes all.
        allow_transfer: Lets a direction from another model of the same width be used.
    """

    point: str | tuple[str, ...]
    at: Position
    direction: Any
    gamma: float = 1.0
    allow_transfer: bool = False

    def __post_init__(self):
        points, at = freeze_points(self.point), as_position(self.at)
        object.__setattr__(self, "direction", freeze_value(self.direction, points, at))
        object.__setattr__(self, "point", points if len(points) > 1 else points[0])
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "gamma", float(self.gamma))
        if not math.isfinite(self.gamma):
            raise InterventionError(f"gamma={self.gamma} is no factor: give a finite number.")

    def lower(self, target: Target) -> list[Op]:
        """One op a point.

        Raises:
            InterventionError: A direction of another width, or of length 0.
        """
        ops = []
        for place in places(target, freeze_points(self.point), self.at, None):
            given = value_for(
                self.direction, place.point, target, allow_transfer=self.allow_transfer
            )
            width, norm = place.point.sizes[-1], float(given.double().norm())
            if given.dim() != 1 or len(given) != width or not norm:
                raise InterventionError(
                    f"{place.point.name} takes one direction [{width}] that is not zero; this is "
                    f"{list(given.shape)}."
                )
            basis = (given.double() / norm).unsqueeze(0)
            ops.append(
                place.op(REMOVE, basis=basis, gamma=torch.tensor(self.gamma),
                         positive=torch.ones(()))
            )  # fmt: skip
        return ops


__all__ = ["ProjectAway"]
