"""Runs in the process of a remote service, NDIF, which holds the model that is only named here.

A run is sent as nnsight sends a session: the points, where they are in the module tree, and what is
to be done there, with the few functions of this package that do it, as source. The service needs
nnsight, torch and transformers, not this package. What comes home are tensors: the logits or
tokens, and what was read.

    here: points, handlers --request--> there: Job(root) --nnsight's interleaver--> the model
    here: logits, what was read <--tensors-- there

The key is read from the environment, `NDIF_API_KEY`, when a run is sent, and kept nowhere; the
service is `NDIF_HOST`, or NDIF's own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import nn

from vlm_lens.engine.attention import tapped
from vlm_lens.engine.firing import Dispatcher, Handler
from vlm_lens.engine.nnsight.block import Block
from vlm_lens.engine.nnsight.traced import interleaved, wrapped
from vlm_lens.errors import InterventionError, ModelError
from vlm_lens.points.table import PointTable

try:
    import nnsight
    from cloudpickle import cloudpickle
    from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
    from nnsight.intervention.interleaver import EarlyStopException
    from nnsight.schema.config import CONFIG
except ImportError as error:  # an extra
    raise ModelError(
        f"nnsight 0.8 cannot be imported ({error}): pip install 'vlm-lens[interop]'."
    ) from error

KEY, HOST = "NDIF_API_KEY", "NDIF_HOST"


class RemoteRun:
    """A run like `HookedRun`, in the process of a remote service.

    Args:
        model: The model, or its form alone, on the device `meta`.
        points: Its points.
        handlers: Point name -> handlers, called in order.

    Attributes:
        fired: Names of the points that have fired.
        state: What handlers write to, which comes home.
        around: The block of a trace, which runs in step with the model.

    Raises:
        InterventionError: On entering, in a run that records gradients.
        ModelError: From `call`: there is no key, or the service fails.
    """

    def __init__(
        self, model: nn.Module, points: PointTable, handlers: Mapping[str, Sequence[Handler]]
    ):
        self.fired: set[str] = set()
        self.state: Sequence[MutableMapping[str, Any]] = ()
        self.around: Block | None = None
        self._model = model
        self._dispatcher = Dispatcher(points, handlers)

    def __enter__(self) -> Self:
        if torch.is_grad_enabled():
            raise InterventionError(
                "Gradients do not come home from a remote run: leave grad=True out, or run here."
            )
        self._dispatcher.attachments(self._model)  # what has no pattern is refused before sending
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def call(self, method: str = "__call__", **kwargs: Any) -> Any:
        """Has the service call the model, or a method of it such as `generate`.

        Raises:
            EarlyStopException: The block of a trace has stopped the run.
        """
        answer = send(self._model, Job(self._dispatcher, method, kwargs, self.state, self.around))
        self.fired = set(answer["fired"])
        for mine, theirs in zip(self.state, answer["state"], strict=True):
            mine.clear()
            mine.update(theirs)
        if answer["output"] is None:
            raise EarlyStopException()
        return SimpleNamespace(logits=answer["output"]) if answer["whole"] else answer["output"]


@dataclass
class Job:
    """What is sent: called with nnsight's view of the model, where the model is.

    Attributes:
        dispatcher: What is to be called at which module.
        method: `"__call__"`, or another method of the model.
        kwargs: What it is called with.
        state: What handlers write to.
        around: The block of a trace.
    """

    dispatcher: Dispatcher
    method: str
    kwargs: dict[str, Any]
    state: Sequence[MutableMapping[str, Any]]
    around: Block | None = None

    def __call__(self, root: Any) -> dict[str, Any]:
        """The output, and what handlers have left, in plain values."""
        wanted = self.dispatcher.attachments(root._module)
        with torch.no_grad(), tapped(wanted.taps):
            run = partial(interleaved, root, wanted.hooks, self.method, self.kwargs)
            output = run() if self.around is None else self.around(run)
        whole = hasattr(output, "logits")
        return {
            "output": output.logits if whole else output,
            "whole": whole,
            "fired": sorted(self.dispatcher.fired),
            "state": [dict(one) for one in self.state],
        }


def send(model: nn.Module, job: Any) -> Any:
    """Sends a job to the service and waits for what it gives.

    Args:
        model: The model, which is named in the request and does not travel.
        job: Called there with nnsight's view of the model.

    Raises:
        ModelError: There is no key, or the service cannot be reached, or fails.
    """
    host = os.environ.get(HOST) or CONFIG.API.HOST
    with wrapped(model) as root, by_value():
        for path, module in model.named_modules():
            module.__dict__["_persistent_id"] = f"Module:{'.'.join(filter(None, ('model', path)))}"
        try:
            with root.session(backend=backend_for(model, host)):
                answer = nnsight.save(job(root))
        except RemoteError as error:
            raise ModelError(f"The run at {host} failed: {error}") from None
        except (OSError, EOFError) as error:
            raise ModelError(f"{host} cannot be reached, or has hung up: {error}") from None
    return answer


def backend_for(model: nn.Module, host: str) -> RemoteBackend:
    """What sends to the service.

    Raises:
        ModelError: There is no key, and NDIF wants one.
    """
    key = os.environ.get(KEY, "")
    if not key and host == type(CONFIG.API)().HOST:
        raise ModelError(
            f"A remote run needs a key of NDIF's in the environment: set {KEY} (login.ndif.us). "
            f"For a service of your own, set {HOST} to its address."
        )
    backend = RemoteBackend(
        model_key(model), host=host, api_key=key or None,
        env={"attn_implementation": getattr(model.config, "_attn_implementation", None)},
    )  # fmt: skip
    backend.api_key = key  # never one of a file
    return backend


def model_key(model: nn.Module) -> str:
    """The name by which the service knows a model; it must be spelt as on the Hub."""
    config: Any = model.config
    task = "image-text-to-text" if hasattr(config, "vision_config") else "text-generation"
    named = {"repo_id": config._name_or_path, "revision": None, "task": task}
    return f"nnsight.modeling.transformers.TransformersModel:{json.dumps(named)}"


@contextmanager
def by_value() -> Iterator[None]:
    """While open, this package's functions travel as source, as the service has not got them."""
    registered = cloudpickle._PICKLE_BY_VALUE_MODULES
    before = set(registered)
    registered.add("vlm_lens")
    try:
        yield
    finally:
        registered.clear()
        registered.update(before)


__all__ = ["Job", "RemoteRun", "send"]
