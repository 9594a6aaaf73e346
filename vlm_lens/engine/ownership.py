"""Whose run it is: hooks that act for their own run only."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from vlm_lens.errors import InterventionError


class OfProcess:
    """What each process has its own of: sent elsewhere, it begins anew there."""

    def __reduce__(self) -> tuple:
        return object.__new__, (type(self),)

    def __getattr__(self, name: str) -> Any:
        """Begins anew where it was sent: its class may get its methods after it."""
        if name.startswith("__"):
            raise AttributeError(name)
        self.__init__()
        return vars(self)[name]


class _Called(OfProcess):
    """The functions that are being called now."""

    def __init__(self):
        self.now: ContextVar[tuple[Callable, ...]] = ContextVar("vlm_lens_functions", default=())


_called = _Called()


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


class calling:  # noqa: N801 - a context
    """While open, a user's function is being called.

    A class, because nnsight sends functions without their decorators.

    Args:
        fn: The function.
        name: The point at which it is called.

    Raises:
        InterventionError: It is being called already: it runs the model that calls it.
    """

    def __init__(self, fn: Callable, name: str):
        self._fn, self._name = fn, name

    def __enter__(self) -> None:
        if any(one is self._fn for one in _called.now.get()):
            raise InterventionError(
                f"The function at {self._name} runs the model, and is open for every run of it, so "
                "it would be called without end: pass it to run_with_hooks(fwd_hooks=...), which "
                "calls it in that run only."
            )
        self._token = _called.now.set((*_called.now.get(), self._fn))

    def __exit__(self, *exc: object) -> None:
        _called.now.reset(self._token)
