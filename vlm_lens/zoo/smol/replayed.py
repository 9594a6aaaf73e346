"""A step recorded once as a CUDA graph and replayed: small models are bound by launches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Replayed"]

_WARM = 3
Step = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class Replayed:
    """Calls a step that computes losses and their gradients; from the second call on a replay.

    Gradients are written anew by each replay, so they are not to be set to zero or `None` between.

    Args:
        step: Called with tensors that have the same shapes every time.
    """

    def __init__(self, step: Step):
        self._step = step
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given: dict[str, Tensor] = {}
        self._found: dict[str, Tensor] = {}

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of this batch; the gradients are in the parameters."""
        if self._graph is None:
            self._record(batch)
        for name, value in batch.items():
            self._given[name].copy_(value)
        self._graph.replay()
        return {name: value.clone() for name, value in self._found.items()}

    def _record(self, batch: dict[str, Tensor]) -> None:
        self._given = {name: value.clone() for name, value in batch.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM):
                self._step(self._given)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._found = self._step(self._given)
