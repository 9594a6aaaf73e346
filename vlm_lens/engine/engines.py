"""Which engine runs the model: torch hooks, or another library's."""

from __future__ import annotations

from vlm_lens.engine.hooks import HookedRun
from vlm_lens.errors import InterventionError

ENGINES = ("hooks", "nnsight")


def engine_named(name: str) -> type[HookedRun]:
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
    raise InterventionError(f"engine is one of {', '.join(ENGINES)}, not {name!r}.")
