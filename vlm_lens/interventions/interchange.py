"""Interchange in a subspace: a part of an activation replaced by that of another run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_lens.errors import InterventionError
from vlm_lens.interventions.base import Intervention, Target, freeze_points, places
from vlm_lens.interventions.shapes import shaped
from vlm_lens.interventions.values import freeze_value, value_for
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.ops import EXCHANGE, Op
from vlm_lens.serial import savable


@savable
@dataclass(frozen=True)
class Interchange(Intervention):
    """Sets the part of an activation in a subspace to that of a source: `h + (source - h) B^T B`.

    Distributed interchange (Geiger et al. 2024, arXiv 2303.02536); with a basis of the whole space
    it is activation patching. `vlm_lens.directions.das` learns the basis.

    Attributes:
        point: A point, a glob, or a list of them.
        at: Where in the prompt.
        basis: `[directions, d]`, rows orthonormal; one that requires grad is learned.
        source: The source's activation, of the forms that ActivationPatch takes.
        allow_transfer: Lets a source from another model of the same width be used.
    """

    point: str | tuple[str, ...]
    at: Position
    basis: Any
    source: Any
    allow_transfer: bool = False

    def __post_init__(self):
        points, at = freeze_points(self.point), as_position(self.at)
        object.__setattr__(self, "source", freeze_value(self.source, points, at))
        object.__setattr__(self, "basis", freeze_value(self.basis, points, at))
        object.__setattr__(self, "point", points if len(points) > 1 else points[0])
        object.__setattr__(self, "at", at)

    def lower(self, target: Target) -> list[Op]:
        """One op a point.

        Raises:
            InterventionError: A basis of another width, or whose rows are not orthonormal.
        """
        ops = []
        for place in places(target, freeze_points(self.point), self.at, None):
            basis = value_for(self.basis, place.point, target, allow_transfer=self.allow_transfer)
            width = place.point.sizes[-1]
            if place.point.has_heads or basis.dim() != 2 or basis.shape[-1] != width:
                raise InterventionError(
                    f"A basis of shape {list(basis.shape)} does not fit {place.point.name} "
                    f"{place.point.shape}: it takes [directions, {width}], at points without heads."
                )
            _check_orthonormal(basis)
            value = value_for(self.source, place.point, target, allow_transfer=self.allow_transfer)
            ops.append(place.op(EXCHANGE, basis=basis, value=shaped(value, place)))
        return ops


def _check_orthonormal(basis: Tensor) -> None:
    wide = basis.detach().double()
    off = (wide @ wide.T - torch.eye(len(wide), dtype=wide.dtype, device=wide.device)).abs().max()
    if not off < 1e-3:
        raise InterventionError(
            f"The rows of the basis are not orthonormal (off by {float(off):.2g}): take "
            "torch.linalg.qr(directions.T).Q.T."
        )


__all__ = ["Interchange"]
