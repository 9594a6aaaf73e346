"""Subspaces: an activation without its part in some directions, or that part alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlm_lens.errors import InterventionError
from vlm_lens.interventions.at_points import AtPoints
from vlm_lens.interventions.base import Place, Target
from vlm_lens.layout.positions import Position
from vlm_lens.ops import PROJECT, REMOVE, Op
from vlm_lens.serial import savable


@dataclass(frozen=True)
class _Subspace(AtPoints):
    point: str | tuple[str, ...]
    at: Position
    directions: Any
    heads: tuple[int, ...] | None = None
    allow_transfer: bool = False
    _kind: ClassVar[str]
    _value: ClassVar[str] = "directions"

    def op_at(self, place: Place, target: Target) -> Op:
        """An op with an orthonormal basis of the directions.

        Raises:
            InterventionError: Directions of another width, or none but zero.
        """
        given, width = self.value_at(place, target), place.point.sizes[-1]
        if given.dim() not in (1, 2) or given.shape[-1] != width:
            raise InterventionError(
                f"Directions of shape {list(given.shape)} do not fit {place.point.name}: it "
                f"takes [{width}], or [directions, {width}]."
            )
        return place.op(self._kind, basis=_orthonormal(given.reshape(-1, width)))


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
    """A basis of what some directions span, `[rank, d]`, in float64.

    Where the directions are learned it is that of a QR decomposition, whose derivative is defined
    where directions are equally long, too; they must then not depend on each other.
    """
    wide = directions.double()
    _, sizes, basis = torch.linalg.svd(wide.detach(), full_matrices=False)
    rank = int((sizes > sizes[0] * 1e-10).sum()) if float(sizes[0]) > 0 else 0
    if not rank:
        raise InterventionError("The directions are zero, so there is nothing to project on.")
    if not directions.requires_grad:
        return basis[:rank]
    if rank < len(directions):
        raise InterventionError(
            f"{len(directions)} directions that are learned span {rank} dimensions only, where "
            "there is no gradient: start from directions that do not depend on each other."
        )
    return torch.linalg.qr(wide.mT)[0].mT
