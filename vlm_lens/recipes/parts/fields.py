"""Fields of recipes: brought to plain Python values, and checked against their annotations."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
from pydantic import ConfigDict, InstanceOf, TypeAdapter, ValidationError

__all__ = ["misfit", "plain_field", "seed_list"]

# No text for a number, no number for a flag; a class that pydantic does not know is an isinstance.
_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)


def plain_field(value: Any) -> Any:
    """A field's value as recipes hold it: lists as tuples, numpy's numbers as Python's."""
    if type(value) in (list, tuple):
        return tuple(map(plain_field, value))
    return value.item() if isinstance(value, np.generic) else value


def misfit(cls: type, name: str, value: Any) -> str | None:
    """What a field must be, where the value does not fit its annotation; None where it does.

    Args:
        cls: A dataclass.
        name: The field.
        value: Its value.
    """
    adapter = _adapters(cls).get(name)
    if adapter is None:
        return None
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)
        return " or ".join(dict.fromkeys(map(_said, wrong)))
    return None


@cache
def _adapters(cls: type) -> Mapping[str, TypeAdapter]:
    try:
        hints = typing.get_type_hints(cls)
    except NameError:  # a class made inside a function may name what cannot be looked up
        return {}
    return {f.name: _adapter(hints[f.name]) for f in dataclasses.fields(cls)}


def _adapter(hint: Any) -> TypeAdapter:
    if dataclasses.is_dataclass(hint):  # pydantic takes no settings for it where it stands alone
        return TypeAdapter(InstanceOf[hint])
    return TypeAdapter(hint, config=_STRICT)


def _said(error: Mapping[str, Any]) -> str:
    wanted = error["msg"].removeprefix("Input should be ")
    entries = [str(at) for at in error["loc"] if isinstance(at, int)]
    return f"{wanted} (entry {', '.join(entries)})" if entries else wanted


def seed_list(seeds: int | Iterable[int]) -> tuple[int, ...]:
    """The seeds meant by a field: a number `n` means 1, 2, ..., n, as in the paper."""
    return tuple(range(1, seeds + 1)) if isinstance(seeds, int) else tuple(seeds)
