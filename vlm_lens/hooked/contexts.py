"""What is open around the runs of a model: `with vlm.intervening(...)` and the like.

As with `torch.no_grad()`, what one thread or one asyncio task opens does not reach another's runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_entries: ContextVar[tuple[tuple[Any, Any], ...]] = ContextVar("vlm_lens_open", default=())


@contextmanager
def opened(owner: Any, what: Any) -> Iterator[None]:
    """While open, `what` is among what is open for `owner`, after all that was opened before."""
    entry = (owner, what)
    _entries.set((*_entries.get(), entry))
    try:
        yield
    finally:  # by identity, because generators may close in another order than they opened
        _entries.set(tuple(e for e in _entries.get() if e is not entry))


def open_for(owner: Any) -> tuple[Any, ...]:
    """What is open for `owner` in this thread or task, in the order of opening."""
    return tuple(what for mine, what in _entries.get() if mine is owner)
