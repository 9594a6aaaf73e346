"""One run at a time on a model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_guard = threading.Lock()


def lock_of(model: nn.Module) -> Any:
    """The lock that a run holds on its model: other threads wait, the same thread may nest."""
    with _guard:
        return _locks.setdefault(model, threading.RLock())


def alone(method: Callable) -> Callable:
    """A method of something that holds a `vlm`, which no other thread's run of it overlaps."""

    @wraps(method)
    def held(self: Any, *args: Any, **kwargs: Any) -> Any:
        with lock_of(self.vlm.hf_model):
            return method(self, *args, **kwargs)

    return held
