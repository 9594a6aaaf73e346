"""Constructors that answer arguments which they do not take in words."""

from __future__ import annotations

import inspect
from abc import ABCMeta
from typing import TYPE_CHECKING, Any

from vlm_lens.errors import KeywordError, near_matches


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


def _misfit(cls: type, args: tuple, kwargs: dict[str, Any]) -> str | None:
    """What is wrong with a constructor's arguments; `None` where they are those that it takes."""
    signature = inspect.signature(cls)
    takes = [n for n, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD]
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        unknown = [name for name in kwargs if name not in takes]
        if unknown:
            wrong = f"takes no {unknown[0]}=.{near_matches(unknown[0], takes)}"
        else:
            wrong = f"got other arguments than it takes: {error}."
        return f"{cls.__name__} {wrong} It takes {', '.join(takes) or 'nothing'}."
    return None
