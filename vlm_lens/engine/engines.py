"""Which engine runs the model: torch hooks, or another library's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import nn

from vlm_lens.engine.firing import Handler
from vlm_lens.engine.hooks import HookedRun
from vlm_lens.errors import InterventionError
from vlm_lens.points.table import PointTable

ENGINES = ("hooks", "nnsight", "ndif")


class Run(AbstractContextManager, Protocol):
    """A context in which `call` runs a model with handlers at its points.

    Attributes:
        fired: Names of the points that have fired.
        state: What handlers write to: comes home from where they have run.
    """

    fired: set[str]
    state: Sequence[MutableMapping[str, Any]]

    def call(self, method: str = "__call__", **kwargs: Any) -> Any:
        """Calls the model, or a method of it such as `generate`."""


RunOf = Callable[[nn.Module, PointTable, Mapping[str, Sequence[Handler]]], Run]


def engine_named(name: str) -> RunOf:
    """The kind of run that an engine's name means.

    Raises:
        InterventionError: There is no such engine.
        ModelError: The library that it needs is not installed.
    """
    if name == "hooks":
        return HookedRun
    if name == "nnsight":
        from vlm_lens.engine.nnsight.traced import TracedRun

        return TracedRun
    if name == "ndif":
        from vlm_lens.engine.nnsight.remote import RemoteRun

        return RemoteRun
    raise InterventionError(f"engine is one of {', '.join(ENGINES)}, not {name!r}.")
