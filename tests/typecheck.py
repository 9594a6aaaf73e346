"""The type checker of the import hook: beartype, where an annotation can be looked up at all."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import get_type_hints

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float


def checked(fn: Callable) -> Callable:
    """The function with its arguments and result checked.

    A dataclass's `__init__` is left as it is, because fields are annotated with what they hold, and
    more is taken: `heads=0` becomes `(0,)`. So is a function where an annotation names something imported for type checkers only, or says
    `Self`, which beartype knows on whole classes alone.
    """
    if fn.__name__ == "__init__":
        return fn
    try:
        get_type_hints(fn)
        return _beartype(fn)
    except (NameError, BeartypeDecorHintException):
        return fn


def unchecked(fn: Callable) -> Callable:
    """The function as users have it, to see what it says itself of a wrong argument."""
    return inspect.unwrap(fn)
