"""Whether a value is used on the model that it was read on."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vlm_lens.errors import VectorError
from vlm_lens.interventions.base import ModelFacts
from vlm_lens.points.point import Point
from vlm_lens.serial import FrozenTensor


def check_same_model(origin: ModelFacts, model: ModelFacts, what: str = "vector") -> None:
    """Refuses a value that was read on another model.

    Raises:
        VectorError: Other weights; where some cannot be read, another unembedding; where that
            cannot be read either, another name.
    """
    kinds = [(origin.signs, model.signs)] if origin.dtype != model.dtype else []
    kinds += [(origin.weights, model.weights)] if not kinds else []
    kinds += [(origin.unembed_hash, model.unembed_hash), (origin.name, model.name)]
    here, there = next((pair for pair in kinds if all(pair)), (None, None))
    if here == there:
        return
    same_head = origin.unembed_hash and origin.unembed_hash == model.unembed_hash
    other = (
        " with other weights behind the same output layer (before or after more training, or with "
        "another adapter on)"
    )
    raise VectorError(
        f"This {what} was read on {origin.name}, and the model is {model.name}"
        f"{other if same_head else ''}. If the transfer is meant (base language model to "
        "vision-language model, say), write allow_transfer=True."
    )


def value_read_at(
    values: Mapping[str, FrozenTensor],
    point: Point,
    origin: ModelFacts | None,
    model: ModelFacts,
    *,
    what: str,
    allow_transfer: bool,
) -> Tensor:
    """What was read at a point, of values by name of point.

    Args:
        values: Point name -> value.
        point: The point at which it is used.
        origin: The model that they were read on, if it is known.
        model: The model on which they are used.
        what: What they are, for messages: `"mean"`.
        allow_transfer: Whether they may be another model's.

    Raises:
        VectorError: They were not read at this point, or on another model.
    """
    if origin is not None and not allow_transfer:
        check_same_model(origin, model, what)
    if point.name not in values:
        raise VectorError(
            f"This {what} was not read at {point.name}; it was at {', '.join(values)}."
        )
    return values[point.name].data


__all__ = ["check_same_model", "value_read_at"]
