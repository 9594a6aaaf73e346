"""The type checker of the import hook: beartype, where an annotation can be looked up at all."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import get_type_hints

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float


def checked(fn: Callable) -> Callable:
    """A public function with its arguments and result checked.

    Private ones and `__init__` are left as they are: a dataclass's fields are annotated with what
    they hold, and more is taken, as `heads=0` for `(0,)`. So are functions with an annotation that
    is imported for type checkers only, or that says `Self`, which beartype knows on whole classes
    alone.
    """
    if fn.__name__.startswith("_"):
        return fn
    try:
        get_type_hints(fn)
        return _beartype(fn)
    except (NameError, BeartypeDecorHintException):
        return fn


def unchecked(fn: Callable) -> Callable:
    """The function as users have it, to see what it says itself of a wrong argument."""
    return inspect.unwrap(fn)
