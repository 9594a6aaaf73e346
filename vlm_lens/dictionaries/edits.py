"""Features changed in a run, as interventions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import SupportsIndex

import torch

from vlm_lens.dictionaries.value import DictionaryError, DictionaryValue
from vlm_lens.interventions.base import Intervention, Target, places
from vlm_lens.interventions.steer import Steer
from vlm_lens.layout.positions import All, Position, as_position
from vlm_lens.ops import FEATURES, Op
from vlm_lens.points.point import Point
from vlm_lens.serial import savable

Features = SupportsIndex | Sequence[SupportsIndex]


@savable
@dataclass(frozen=True)
class Splice(Intervention):
    """Puts a dictionary into the run: `y -> decode(f') + error`, `f' = factor encode(x) + shift`.

    An autoencoder reads and writes one point, `x = y`; a transcoder reads `point` (the input of an
    MLP) and writes `point_out` (its output). The error term is `y - decode(encode(x))`, what the
    dictionary does not know. With it, nothing but the change of features acts,
    `y + (f' - f) W_dec`: with none, the run is the plain one bit for bit. Without it, the model
    goes on with what the dictionary knows.

    Attributes:
        dictionary: The dictionary; the width of the model is checked.
        at: Where in the prompt; `Generated()` acts at every new token.
        error: Whether what is not reconstructed stays.
        features: Which features are changed.
        factor: What each is multiplied by, one number or one a feature.
        shift: What is added to each after that, likewise.
    """

    dictionary: DictionaryValue
    at: Position = field(default_factory=All)
    error: bool = True
    features: tuple[int, ...] = ()
    factor: float | tuple[float, ...] = 1.0
    shift: float | tuple[float, ...] = 0.0

    def __post_init__(self):
        coder = self.dictionary
        if "batch_k" in coder.tensors:
            raise DictionaryError(
                "BatchTopK without a threshold depends on what else is in the batch, so a splice "
                "is not defined by the prompt: give the dictionary a threshold."
            )
        chosen = coder.numbers(self.features) if self.features != () else ()
        object.__setattr__(self, "at", as_position(self.at))
        object.__setattr__(self, "features", chosen)
        for name in ("factor", "shift"):
            object.__setattr__(self, name, self._numbers(name, getattr(self, name), len(chosen)))

    def _numbers(self, name: str, given: object, n: int) -> tuple[float, ...]:
        values = (given,) * n if isinstance(given, int | float) else tuple(given)  # type: ignore[call-overload]
        if len(values) != n:
            raise DictionaryError(f"{name} holds {len(values)} numbers for {n} features.")
        found = tuple(map(float, values))
        if not all(map(math.isfinite, found)):
            raise DictionaryError(f"{name}={given} is not finite.")
        return found

    @property
    def point(self) -> str:
        """Where it acts."""
        return self.dictionary.point_out

    def lower(self, target: Target) -> list[Op]:
        """One op.

        Raises:
            VLMLensError: The dictionary does not fit the model.
        """
        ops = []
        for place in places(target, (self.point,), self.at, None):
            self.dictionary.check_point(place.point, out=True)
            tensors = {
                **self.dictionary.coder.tensors,
                "which": torch.tensor(self.features, dtype=torch.long),
                "factor": torch.tensor(self.factor),
                "shift": torch.tensor(self.shift),
            }
            if self.error:
                tensors["error"] = torch.ones(())
            op = place.op(FEATURES, **tensors)
            ops.append(replace(op, source=self._source(target, place.point)))
        return ops

    def _source(self, target: Target, out: Point) -> str:
        """The point that a transcoder reads, which is of the block that it writes in."""
        if not self.dictionary.transcodes:
            return ""
        read = target.points[self.dictionary.point]
        self.dictionary.check_point(read)
        if (read.layer, read.space) != (out.layer, out.space):
            raise DictionaryError(
                f"This transcoder reads {read.name} and writes {out.name}, and only one whose "
                "points are of one block can be spliced in: steer(feature, alpha) acts at the "
                "latter alone."
            )
        return read.name


def splice(dictionary: DictionaryValue, at: Position | int, error: bool) -> Splice:
    """See `Dictionary.splice`."""
    return Splice(dictionary, as_position(at), error)


def ablate(dictionary: DictionaryValue, features: Features, at: Position | int) -> Splice:
    """See `Dictionary.ablate`."""
    return Splice(dictionary, as_position(at), True, dictionary.numbers(features), 0.0)


def clamp(
    dictionary: DictionaryValue,
    features: Features,
    value: float | Sequence[float],
    at: Position | int,
) -> Splice:
    """See `Dictionary.clamp`."""
    shift = tuple(value) if isinstance(value, Sequence) else value
    return Splice(dictionary, as_position(at), True, dictionary.numbers(features), 0.0, shift)


def steer(
    dictionary: DictionaryValue, feature: SupportsIndex, alpha: float, at: Position | int
) -> Steer | Splice:
    """See `Dictionary.steer`."""
    direction = dictionary.direction(feature)
    if dictionary.point_out.endswith("hook_z"):  # how many heads it has is known on a model only
        return Splice(dictionary, as_position(at), True, dictionary.numbers(feature), 1.0, alpha)
    return Steer(dictionary.point_out, as_position(at), direction, scale=alpha)


__all__ = ["Features", "Splice", "ablate", "clamp", "splice", "steer"]
