"""What interventions at points share: names, positions, heads, a value, and one op a place."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vlm_lens.interventions.base import (
    Intervention,
    Place,
    Target,
    freeze_heads,
    freeze_points,
    places,
)
from vlm_lens.interventions.shapes import shaped
from vlm_lens.interventions.values import freeze_value, value_for
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.ops import Op


@dataclass(frozen=True)
class AtPoints(Intervention):
    """A change at some points, positions and heads; a subclass has a field `heads`, too.

    Attributes:
        point: A point, a glob, or a list of them.
        at: Where in the prompt.
        _value: The name of the field that holds what is written, where there is one.
    """

    point: str | tuple[str, ...]
    at: Position
    _value: ClassVar[str] = ""

    def __post_init__(self):
        points, at = freeze_points(self.point), as_position(self.at)
        frozen: dict[str, Any] = {"point": points if len(points) > 1 else points[0], "at": at}
        frozen["heads"] = freeze_heads(vars(self)["heads"])
        frozen |= self._frozen(points, at)
        for name, value in frozen.items():
            object.__setattr__(self, name, value)

    def _frozen(self, points: tuple[str, ...], at: Position) -> dict[str, Any]:
        """The field that holds what is written, as a frozen value."""
        if not self._value:
            return {}
        return {self._value: freeze_value(getattr(self, self._value), points, at)}

    def lower(self, target: Target) -> list[Op]:
        """One op a point."""
        return [self.op_at(place, target) for place in self.places(target)]

    @abstractmethod
    def op_at(self, place: Place, target: Target) -> Op:
        """The op at one point."""

    def places(self, target: Target) -> list[Place]:
        """Where it acts."""
        return places(target, freeze_points(self.point), self.at, vars(self)["heads"])

    def value_at(self, place: Place, target: Target) -> Tensor:
        """What is written at a place, as the user gave it."""
        allow = vars(self).get("allow_transfer", False)
        value = getattr(self, self._value)
        return value_for(value, place.point, target, allow_transfer=allow)

    def shaped_at(self, place: Place, target: Target) -> Tensor:
        """What is written at a place, as an op wants it."""
        return shaped(self.value_at(place, target), place)
