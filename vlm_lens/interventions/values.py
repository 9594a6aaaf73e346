"""What an intervention may write: a tensor, a vector for each layer, a slice of a cache."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from vlm_lens.errors import InterventionError
from vlm_lens.interventions.base import ModelFacts, Target
from vlm_lens.layout.positions import Position
from vlm_lens.points.point import Point
from vlm_lens.serial import FrozenTensor, LearnedTensor, as_frozen


@runtime_checkable
class PointValue(Protocol):
    """A value that knows what to give for a point: a TaskVector, an ensemble, a cache's slice."""

    def value_at(self, point: Point, model: ModelFacts, *, allow_transfer: bool = False) -> Tensor:
        """The tensor for a point.

        Raises:
            VectorError: There is none for this point, or it does not fit this model.
        """


@runtime_checkable
class Sliceable(Protocol):
    """A value that must be cut at a position before it can be frozen: an ActivationCache."""

    def slice_at(self, points: tuple[str, ...], at: Position) -> PointValue:
        """The values of some points at a position, as a frozen value."""


def freeze_value(value: Any, points: tuple[str, ...], at: Position) -> Any:
    """Turns what the user gave into a frozen value.

    Raises:
        InterventionError: Not a number, tensor, vector or cache.
    """
    if isinstance(value, FrozenTensor):  # first, as questions of a Protocol are slow
        return value
    if isinstance(value, Sliceable):
        return value.slice_at(points, at)
    if isinstance(value, PointValue):
        return value
    if isinstance(value, Tensor):
        return as_frozen(checked(value))
    if isinstance(value, Real):
        return FrozenTensor(checked(torch.tensor(float(value))))
    raise InterventionError(
        f"A value is a number, a tensor, a TaskVector, a VectorEnsemble or an ActivationCache, not "
        f"{type(value).__name__}."
    )


def freeze_number(value: Any, name: str) -> float | LearnedTensor:
    """A number as a float; a tensor of one number that requires grad stays what it is.

    Raises:
        InterventionError: It is no finite number.
    """
    if isinstance(value, LearnedTensor):
        return value
    if isinstance(value, FrozenTensor):  # read from a file, after it was learned
        value = value.data
    single = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
    if single and value.requires_grad and value.isfinite().all():
        return LearnedTensor(value)
    real = single or (isinstance(value, Real) and not isinstance(value, bool))
    if not real or not math.isfinite(value):
        raise InterventionError(f"{name}={value!r:.60} is no factor: give a finite number.")
    return float(value)


def number_of(value: float | LearnedTensor) -> Tensor:
    """A frozen number as a tensor of no axis, with its graph where it is learned."""
    if isinstance(value, LearnedTensor):
        return value.data.reshape(())
    return torch.tensor(value, dtype=torch.float64)


def checked(value: Tensor) -> Tensor:
    """A tensor that can be written.

    Raises:
        InterventionError: It is empty, or holds complex numbers.
    """
    if not value.numel() or value.is_complex():
        what = "complex numbers" if value.is_complex() else "no numbers"
        raise InterventionError(f"A value of shape {list(value.shape)} holds {what}.")
    return value


def value_for(
    value: PointValue | FrozenTensor, point: Point, target: Target, *, allow_transfer: bool
) -> Tensor:
    """The tensor that a frozen value gives for a point.

    Raises:
        InterventionError: It holds NaN, or infinity where no score of attention is meant.
        VectorError: There is none for this point, or it does not fit this model.
    """
    if isinstance(value, FrozenTensor):
        found, (nan, infinity) = value.data, value.extremes
    else:
        found = value.value_at(point, target.model, allow_transfer=allow_transfer)
        nan, infinity = bool(found.isnan().any()), bool(found.isinf().any())
    if nan:
        raise InterventionError(
            f"The value for {point.name} holds NaN, and the model would go on with nothing else: "
            "look where it comes from (a mean over nothing, a division by zero, an overflow)."
        )
    if infinity and not point.name.endswith("attn_scores"):
        raise InterventionError(
            f"The value for {point.name} holds infinity, of which the model would make NaN: look "
            "where it comes from (an overflow in half precision, a division by zero)."
        )
    return found
