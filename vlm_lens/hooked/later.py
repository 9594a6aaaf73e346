"""What a cache asks of its model later, without keeping it; pickled, it goes without the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from vlm_lens.interventions.base import ModelFacts

if TYPE_CHECKING:
    from torch import nn

    from vlm_lens.families import Architecture


def _gone() -> None:
    """What a reference to a model gives where there is none."""


class _Later:
    """A question to a model.

    Args:
        model: Gives the model for as long as it is there, and does not keep it.
    """

    def __init__(self, model: Callable[[], Any] = _gone):
        self._model = model

    def __deepcopy__(self, memo: Any) -> Self:
        return self


class FactsLater(_Later):
    """Gives a model's facts when it is called; pickled, it takes them along."""

    def __init__(self, known: ModelFacts, model: Callable[[], Any] = _gone):
        super().__init__(model)
        self._known = known

    def __call__(self) -> ModelFacts:
        """The facts as they are now; those known where the model is gone."""
        vlm = self._model()
        return self._known if vlm is None else vlm.facts

    def __reduce__(self) -> tuple[Any, ...]:
        return FactsLater, (self(),)


class PartsLater(_Later):
    """Gives a model, its parts and its token ids when it is called; `None` where it is gone."""

    def __call__(self) -> tuple[nn.Module, Architecture, Callable[[str | int], int]] | None:
        """The three, or nothing."""
        vlm = self._model()
        return None if vlm is None else (vlm.hf_model, vlm.architecture, vlm.to_token_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return PartsLater, ()


__all__ = ["FactsLater", "PartsLater"]
