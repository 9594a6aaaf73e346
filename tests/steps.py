"""Counts operations that compute, and those whose result the host waits for."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# what moves no number: views of a tensor, and memory that is not filled
_VIEWS = (
    "view", "_unsafe_view", "reshape", "expand", "slice", "select.int", "transpose", "permute",
    "unsqueeze", "squeeze", "t.default", "alias", "detach", "unbind", "split", "narrow", "empty",
    "new_empty", "as_strided", "lift_fresh",
)  # fmt: skip
_WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")


class Steps(TorchDispatchMode):
    """Counts, while it is open; on a GPU each step is a kernel, and the host waits for a wait.

    Attributes:
        computed: Operations that compute.
        waits: Operations whose result the host needs.
    """

    def __init__(self):
        super().__init__()
        self.computed = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None):
        """Runs an operation and counts it."""
        name = str(func).removeprefix("aten.")
        self.waits += name.startswith(_WAITS)
        self.computed += not name.startswith((*_VIEWS, *_WAITS))
        return func(*args, **(kwargs or {}))


def steps_of(run: Any) -> Steps:
    """What a function computes."""
    with torch.no_grad(), Steps() as steps:
        run()
    return steps
