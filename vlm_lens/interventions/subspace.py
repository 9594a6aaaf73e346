"""Subspaces: an activation without its part in some directions, or that part alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlm_lens.errors import InterventionError
from vlm_lens.interventions.base import (
    Intervention,
    Target,
    freeze_heads,
    freeze_points,
    places,
)
from vlm_lens.interventions.values import freeze_value, value_for
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.ops import PROJECT, REMOVE, Op
from vlm_lens.serial import savable


@dataclass(frozen=True)
class _Subspace(Intervention):
    point: str | tuple[str, ...]
    at: Position
    directions: Any
    heads: tuple[int, ...] | None = None
    allow_transfer: bool = False
    _kind: ClassVar[str]

    def __post_init__(self):
        points, at = freeze_points(self.point), as_position(self.at)
        object.__setattr__(self, "directions", freeze_value(self.directions, points, at))
        object.__setattr__(self, "point", points if len(points) > 1 else points[0])
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "heads", freeze_heads(self.heads))

    def lower(self, target: Target) -> list[Op]:
        """One op a point, with an orthonormal basis of the directions.

        Raises:
            InterventionError: Directions of another width, or none but zero.
        """
        ops, bases = [], {}
        for place in places(target, freeze_points(self.point), self.at, self.heads):
            given = value_for(
                self.directions, place.point, target, allow_transfer=self.allow_transfer
            )
            width = place.point.sizes[-1]
            if given.dim() not in (1, 2) or given.shape[-1] != width:
                raise InterventionError(
                    f"Directions of shape {list(given.shape)} do not fit {place.point.name}: it "
                    f"takes [{width}], or [directions, {width}]."
                )
            if id(given) not in bases:  # one tensor for many points is one basis
                bases[id(given)] = (given, _orthonormal(given.reshape(-1, width)))
            ops.append(place.op(self._kind, basis=bases[id(given)][1]))
        return ops


@savable
@dataclass(frozen=True)
class Remove(_Subspace):
    """Takes the part of an activation in some directions away: `h - h B^T B`.

    `B` is an orthonormal basis of the directions, which need not be orthogonal or of unit length
    (directional ablation, Arditi et al. 2024).

    Attributes:
        point: A point, a glob, or a list of them.
        at: Where in the prompt; `Generated()` acts at every new token.
        directions: `[d]`, `[directions, d]`, or a TaskVector, which gives each layer its own.
        heads: Which heads, at points that have them; all by default.
        allow_transfer: Lets a vector from another model of the same width be used.
    """

    _kind: ClassVar[str] = REMOVE


@savable
@dataclass(frozen=True)
class Project(_Subspace):
    """Leaves the part of an activation in some directions only: `h B^T B`.

    Attributes:
        point: A point, a glob, or a list of them.
        at: Where in the prompt; `Generated()` acts at every new token.
        directions: `[d]`, `[directions, d]`, or a TaskVector, which gives each layer its own.
        heads: Which heads, at points that have them; all by default.
        allow_transfer: Lets a vector from another model of the same width be used.
    """

    _kind: ClassVar[str] = PROJECT


def _orthonormal(directions: Tensor) -> Tensor:
    """A basis of what some directions span, `[rank, d]`, in float64."""
    _, sizes, basis = torch.linalg.svd(directions.double(), full_matrices=False)
    rank = int((sizes > sizes[0] * 1e-10).sum()) if float(sizes[0]) > 0 else 0
    if not rank:
        raise InterventionError("The directions are zero, so there is nothing to project on.")
    return basis[:rank]
