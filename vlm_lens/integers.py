"""Whole numbers as Python, numpy and torch have them."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from vlm_lens.errors import VLMLensError


def is_integer(value: Any) -> bool:
    """Whether a value is one whole number: an int, a numpy or torch integer; no bool, no float."""
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return False
    try:
        operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def as_integer(value: Any, what: str, error: type[VLMLensError] = VLMLensError) -> int:
    """A whole number as an int.

    Args:
        value: What a user gave.
        what: What it stands for, in messages.
        error: The error raised.

    Raises:
        VLMLensError: It is none.
    """
    if not is_integer(value):
        raise error(f"{what} is a whole number, not {value!r:.60}.")
    return operator.index(value)


def as_integers(value: Any, what: str, error: type[VLMLensError] = VLMLensError) -> tuple[int, ...]:
    """One whole number, or a list, range or array of them, as a tuple.

    Raises:
        VLMLensError: Something else.
    """
    if is_integer(value):
        return (operator.index(value),)
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise error(f"{what} is a whole number or a list of them, not {value!r:.60}.")
    return tuple(as_integer(v, what, error) for v in value)
