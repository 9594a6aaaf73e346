"""Whose run it is: hooks that act for their own run only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from vlm_lens.errors import InterventionError

_called: ContextVar[tuple[Callable, ...]] = ContextVar("vlm_lens_functions_called", default=())


class Owner:
    """The thread and the forward pass that the hooks of one run belong to.

    Hooks stand on modules, so they are called by every forward pass of these modules: by one of
    another thread, or by one that a handler of this run starts. Those are not this run's.

    Attributes:
        in_handler: Whether a handler of the run is being called.
    """

    def __init__(self):
        self._thread = threading.get_ident()
        self.in_handler = False

    def here(self) -> bool:
        """Whether a hook that is called now is called by the run itself."""
        return not self.in_handler and threading.get_ident() == self._thread


@contextmanager
def calling(fn: Callable, name: str) -> Iterator[None]:
    """While open, a user's function is being called.

    Raises:
        InterventionError: It is being called already: it runs the model that calls it.
    """
    if any(one is fn for one in _called.get()):
        raise InterventionError(
            f"The function at {name} runs the model, and is open for every run of it, so it would "
            "be called without end: pass it to run_with_hooks(fwd_hooks=...), which calls it in "
            "that run only."
        )
    token = _called.set((*_called.get(), fn))
    try:
        yield
    finally:
        _called.reset(token)
