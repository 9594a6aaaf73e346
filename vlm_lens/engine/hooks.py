"""Runs an untouched Hugging Face model with torch hooks at points, and takes every hook off again.

Hooks are registered with `prepend=True`: transformers 5 records `hidden_states` with forward hooks
of its own, and a hook that comes after them changes a layer's output only after the projector's
copy has been taken.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import nn

from vlm_lens.engine.attention import tapped
from vlm_lens.engine.firing import INPUT, Dispatcher, Handler, ModuleHook
from vlm_lens.engine.obstacles import (
    check_not_checkpointing,
    check_not_compiled,
    warn_if_training,
)
from vlm_lens.gradients import check_records
from vlm_lens.locks import lock_of
from vlm_lens.points.sites import submodule
from vlm_lens.points.table import PointTable


class HookedRun(Dispatcher):
    """A context in which a model's forward passes call handlers at points.

    It holds the model's lock, so that other threads' runs wait. Handlers are called by the forward
    passes of this run only: a model that a handler runs does not call them.

    Args:
        model: The model; nothing of it is changed but for hooks, taken off on exit, also after an
            exception.
        points: Its points.
        handlers: Point name -> handlers, called in order. Readers should come after writers.

    Attributes:
        state: What handlers write to; a run elsewhere brings it home.

    Raises:
        ModelError: On entering, where hooks could not act (a compiled module, or gradient
            checkpointing in a run that records gradients), or where gradients cannot be recorded.
    """

    def __init__(
        self, model: nn.Module, points: PointTable, handlers: Mapping[str, Sequence[Handler]]
    ):
        super().__init__(points, handlers)
        self.state: Sequence[MutableMapping[str, Any]] = ()
        self._model = model
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        warn_if_training(self._model)
        self._stack.enter_context(lock_of(self._model))
        try:
            if torch.is_grad_enabled():
                check_records(self._model)
            if self._handlers:  # nothing is put on where nobody asks
                wanted = self.attachments(self._model)
                check_not_compiled(self._model, wanted.modules)
                if torch.is_grad_enabled():
                    check_not_checkpointing(self._model)
                self._stack.enter_context(tapped(wanted.taps))
                self._attach(wanted.hooks)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def call(self, method: str = "__call__", **kwargs: Any) -> Any:
        """Calls the model, or a method of it such as `generate`."""
        return getattr(self._model, method)(**kwargs)

    def _attach(self, hooks: Sequence[ModuleHook]) -> None:
        """Has the functions called at their modules, each before those in front of it."""
        for hook in hooks:
            module = submodule(self._model, hook.path)
            if hook.side == INPUT:
                register = module.register_forward_pre_hook
                handle = register(hook.call, prepend=True, with_kwargs=True)
            else:
                handle = module.register_forward_hook(hook.call, prepend=True)
            self._stack.callback(handle.remove)


def count_hooks(model: torch.nn.Module) -> int:
    """How many forward hooks stand on a model; tests use it to see that none is left behind."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
