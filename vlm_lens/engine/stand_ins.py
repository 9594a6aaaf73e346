"""Runs a model with some of its modules' results given, for as long as a context is open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def standing_in(results: Mapping[nn.Module, Callable[[], Any]]) -> Iterator[None]:
    """While open, these modules compute nothing and return what their functions give.

    Hooks on them fire as ever. The model is as it was afterwards, also after an exception: a module
    that had a forward of its own (an offloaded one has) has it again.
    """
    before = {module: module.__dict__.get("forward") for module in results}
    try:
        for module, give in results.items():
            module.forward = _giver(give)
        yield
    finally:
        for module, own in before.items():
            module.__dict__.pop("forward", None)
            if own is not None:
                module.forward = own


def _giver(give: Callable[[], Any]) -> Callable:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return give()

    return forward
