"""Runs with nnsight in place of torch hooks: its interleaver calls the handlers at points.

At each module that a handler hangs on stands one of nnsight's workers, which waits for the module's
input or output, visit after visit, and swaps in what the handlers make of it:

    module --output--> worker: handlers --swap--> the model goes on

So any order of points is served, and a module that is called several times (a tower, generation)
at each call. Scores and patterns have no place in a module tree: they are shown as in every run, by
the attention function.

nnsight leaves its controllers on a model's modules for good; here they are taken off after the run,
where nobody else's nnsight had put them on.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

from torch import nn

from vlm_lens.engine.firing import INPUT, ModuleHook
from vlm_lens.engine.hooks import HookedRun
from vlm_lens.errors import ModelError
from vlm_lens.points.sites import submodule

try:
    from nnsight.intervention.envoy import Envoy
    from nnsight.intervention.interleaver import Interleaver, Mediator, OutOfOrderError
    from nnsight.intervention.iterator import Iterations
    from nnsight.intervention.source import STATE
except ImportError as error:  # an extra
    raise ModelError(
        f"nnsight 0.8 cannot be imported ({error}): pip install 'vlm-lens[interop]'."
    ) from error

_NOTHING = object()
_TAG = "_persistent_id"


class TracedRun(HookedRun):
    """A context like `HookedRun`, whose handlers nnsight calls; arguments and errors are the same.

    `call` must be what calls the model.
    """

    def _attach(self, hooks: Sequence[ModuleHook]) -> None:
        self._hooks = hooks

    def call(self, method: str = "__call__", **kwargs: Any) -> Any:
        """Calls the model, or a method of it such as `generate`, inside nnsight's interleaver."""
        if not self._handlers:
            return super().call(method, **kwargs)
        with wrapped(self._model) as root:
            return interleaved(root, self._hooks, method, kwargs)


@contextmanager
def wrapped(model: nn.Module) -> Iterator[Envoy]:
    """While open, nnsight's controllers stand on a model's modules.

    Args:
        model: The model, which may have controllers of another wrapper; these stay.
    """
    tagged = [m for m in model.modules() if _TAG in m.__dict__]
    fresh = [m for m in model.modules() if STATE not in m.__dict__]
    forwards = {m: m.__dict__.get("forward", _NOTHING) for m in fresh}
    try:
        with warnings.catch_warnings():
            # a submodule of the name of one of nnsight's attributes, which is not asked for
            warnings.filterwarnings("ignore", message="Module '.*' has a submodule named")
            root = Envoy(model)
        yield root
    finally:
        for module in set(model.modules()) - set(tagged):
            module.__dict__.pop(_TAG, None)  # what sending them to a service leaves
        for module, forward in forwards.items():
            if module.__dict__.pop(STATE, None) is None:
                continue
            del module.__dict__["forward"]
            if forward is not _NOTHING:
                module.__dict__["forward"] = forward


def interleaved(
    root: Envoy, hooks: Sequence[ModuleHook], method: str, kwargs: Mapping[str, Any]
) -> Any:
    """Calls a method of a model while nnsight calls functions at its modules.

    Args:
        root: nnsight's view of the model.
        hooks: The functions, each before those in front of it at the same place.
        method: `"__call__"`, or another method of the model.
        kwargs: What it is called with.
    """
    interleaver = root.interleaver
    places: dict[tuple[nn.Module, str], list[Callable]] = defaultdict(list)
    for hook in hooks:
        places[submodule(root._module, hook.path), hook.side].insert(0, hook.call)
    code = compile("work()", "<vlm_lens>", "exec")  # what each worker runs
    workers = []
    for (module, side), calls in places.items():
        location = f"{interleaver.envoys[id(module)].path}.{side}"
        work = _worker(interleaver, location, _together(side, module, calls))
        workers.append(Mediator(code, {}, {"work": work}))
    interleaver.mediators = workers
    return root.interleave(method, **kwargs)


def _together(side: str, module: nn.Module, calls: Sequence[Callable]) -> Callable:
    """The functions of a place as one: what they make of its value, `None` if they leave it."""

    def serve(value: Any) -> Any:
        changed = False
        for call in calls:
            new = call(module, *value) if side == INPUT else call(module, (), value)
            if new is not None:
                value, changed = new, True
        return value if changed else None

    return serve


def _worker(interleaver: Interleaver, location: str, serve: Callable) -> Callable[[], None]:
    """What a worker does: serves a place at each visit, until the run is over.

    While it serves, modules that handlers call are not part of the run. Handlers see the context
    variables of whoever runs the model, which a worker does not.
    """
    context = copy_context()

    def work() -> None:
        try:
            for _ in Iterations()[:]:
                value = Mediator.value(location)
                interleaver.interleaving = False
                try:
                    new = context.run(serve, value)
                finally:
                    interleaver.interleaving = True
                if new is not None:
                    Mediator.swap(location, new)
        except OutOfOrderError:  # thrown in where the run is over
            return

    return work


__all__ = ["TracedRun", "interleaved", "wrapped"]
