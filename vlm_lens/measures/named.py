"""The measure that a short form stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vlm_lens.integers import is_integer
from vlm_lens.measures.base import Measure, MeasureError
from vlm_lens.measures.basic import Custom, Logits, TokenScores, Top1
from vlm_lens.measures.generated import GeneratedTokens

_NAMED = {"top1": Top1, "logits": Logits, "generate": GeneratedTokens}


def as_measure(measure: Measure | str | Sequence | Callable) -> Measure:
    """`"top1"`, `"logits"`, `"generate"`, tokens, a function, or a `Measure`.

    Raises:
        MeasureError: None of these.
    """
    if isinstance(measure, Measure):
        return measure
    if isinstance(measure, str):
        if measure in _NAMED:
            return _NAMED[measure]()
        raise MeasureError(
            f"There is no measure {measure!r}: use {', '.join(map(repr, _NAMED))}, a list of "
            "tokens, a function of the last logits, or a Measure."
        )
    if isinstance(measure, type) and issubclass(measure, Measure):
        raise MeasureError(f"{measure.__name__} is a class: make one, {measure.__name__}(...).")
    if callable(measure):
        return Custom(measure)
    if isinstance(measure, list | tuple) and all(
        isinstance(t, str) or is_integer(t) for t in measure
    ):
        return TokenScores(tuple(measure))
    raise MeasureError(f"{measure!r} is no measure.")
