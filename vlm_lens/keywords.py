"""Constructors and functions that answer arguments which they do not take in words."""

from __future__ import annotations

import inspect
from abc import ABCMeta
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from vlm_lens.errors import KeywordError, near_matches

P = ParamSpec("P")
R = TypeVar("R")


class AnsweringMeta(ABCMeta):
    """Of classes that users make: a misspelt, missing or superfluous argument is told.

    What a constructor itself raises, of any kind, is left as it is; a call that succeeds costs no
    more than it did.
    """

    if not TYPE_CHECKING:  # a type checker looks at each class's own constructor

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            """A new value of the class.

            Raises:
                KeywordError: Arguments that the constructor does not take.
            """
            try:
                return type.__call__(cls, *args, **kwargs)  # no super(): it does not travel
            except TypeError:
                told = _misfit(cls, args, kwargs)
                if told is None:
                    raise
            raise KeywordError(told)

    @property
    def __signature__(cls) -> inspect.Signature:
        """That of the class's own constructor, for help and completion."""
        whole = inspect.signature(cls.__init__)
        return whole.replace(parameters=[*whole.parameters.values()][1:])


class Answering(metaclass=AnsweringMeta):
    """A class whose constructor answers in words."""


def answering(function: Callable[P, R]) -> Callable[P, R]:
    """A function or method that answers a wrong argument, and what is no model, in words."""

    @wraps(function)
    def answered(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (TypeError, AttributeError) as error:
            told = _misfit(function, args, kwargs)
            told = _no_model(function, args, kwargs) if told is None else told
            if told is None:
                raise error
        raise KeywordError(told)

    return answered


def _misfit(called: Callable, args: tuple, kwargs: dict[str, Any]) -> str | None:
    """What is wrong with arguments; `None` where they are those that are taken."""
    signature = inspect.signature(called)
    takes = [n for n, p in signature.parameters.items()
             if p.kind is not p.VAR_KEYWORD and n not in ("self", "cls")]  # fmt: skip
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        unknown = [name for name in kwargs if name not in takes]
        if unknown:
            wrong = f"takes no {unknown[0]}=.{near_matches(unknown[0], takes)}"
        else:
            wrong = f"got other arguments than it takes: {error}."
        return f"{_name(called, args)} {wrong} It takes {', '.join(takes) or 'nothing'}."
    return None


def _name(called: Callable, args: tuple) -> str:
    """What a user calls it: a method by the class that they see, not by the one that defines it."""
    if isinstance(called, type):
        return called.__name__
    first = next(iter(inspect.signature(called).parameters), "")
    if first in ("self", "cls") and args:
        owner = args[0] if first == "cls" else type(args[0])
        return f"{owner.__name__}.{called.__name__}"
    return called.__qualname__


def _no_model(called: Callable, args: tuple, kwargs: dict[str, Any]) -> str | None:
    """What was given in place of a model, where something was."""
    given = inspect.signature(called).bind(*args, **kwargs).arguments
    if given.get("vlm") is None or hasattr(given["vlm"], "hf_model"):
        return None
    return (
        f"{_name(called, args)} takes a model as vlm, HookedVLM.from_pretrained(name), not "
        f"{given['vlm']!r:.60}."
    )
