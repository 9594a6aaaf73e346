"""Runs an untouched Hugging Face model with torch hooks at points, and takes every hook off again.

Hooks are registered with `prepend=True`: transformers 5 records `hidden_states` with forward hooks
of its own, and a hook that comes after them changes a layer's output only after the projector's
copy has been taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from vlm_lens.engine.attention import ChunkedTap, check_supported, tapped
from vlm_lens.errors import InterventionError
from vlm_lens.points.point import Point
from vlm_lens.points.sites import AttentionSite, InputSite, MidSite, OutputSite, submodule
from vlm_lens.points.table import PointTable


@dataclass(frozen=True)
class Firing:
    """What a handler is told beside the activation.

    Attributes:
        point: The point that fires.
        offset: Position in the whole sequence of the activation's first position: 0 in a plain
            forward, the number of cached tokens when generating.
    """

    point: Point
    offset: int


@dataclass(frozen=True)
class Handler:
    """A function called when a point fires.

    Attributes:
        call: `(activation, firing) -> replacement`, or `None` to leave it.
        writes: Whether it may replace the activation.
    """

    call: Callable[[Tensor, Firing], Tensor | None]
    writes: bool = True


Action = tuple[InputSite | OutputSite, Callable[[Tensor], Tensor | None]]


class HookedRun:
    """A context in which a model's forward passes call handlers at points.

    Args:
        model: The model; nothing of it is changed but for hooks, taken off on exit, also after an
            exception.
        points: Its points.
        handlers: Point name -> handlers, called in order. Readers should come after writers.
    """

    def __init__(
        self, model: nn.Module, points: PointTable, handlers: Mapping[str, Sequence[Handler]]
    ):
        self._model = model
        self._handlers = {name: handlers[name] for name in points if handlers.get(name)}
        self._points = {name: points[name] for name in self._handlers}
        self._inputs: dict[str, list[Action]] = defaultdict(list)
        self._outputs: dict[str, list[Action]] = defaultdict(list)
        self._mids: dict[str, dict[str, Tensor]] = defaultdict(dict)
        self._offset = 0
        self._length: int | None = None
        self._rows = 1
        self._stack = ExitStack()
        self._entry = _entry(model, points)

    def __enter__(self) -> Self:
        taps = self._plan()
        try:
            self._stack.enter_context(tapped(taps))
            for module in dict.fromkeys((self._model, self._entry)):
                self._add_hook(
                    module.register_forward_pre_hook(
                        self._start_forward, prepend=True, with_kwargs=True
                    )
                )
            if self._entry is not self._model:
                self._add_hook(self._entry.register_forward_hook(self._end_forward, prepend=True))
            for path, actions in self._inputs.items():
                hook = partial(_run_inputs, actions)
                self._add_hook(
                    submodule(self._model, path).register_forward_pre_hook(
                        hook, prepend=True, with_kwargs=True
                    )
                )
            for path, actions in self._outputs.items():
                hook = partial(_run_outputs, actions)
                module = submodule(self._model, path)
                self._add_hook(module.register_forward_hook(hook, prepend=True))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()
        self._mids.clear()

    def _add_hook(self, handle: Any) -> None:
        self._stack.callback(handle.remove)

    def _plan(self) -> dict[nn.Module, Callable]:
        """Sorts the points into actions on inputs and outputs of modules and attention taps."""
        attention: dict[nn.Module, dict[str, Point]] = defaultdict(dict)
        tail: list[tuple[str, Action]] = []  # run after all handlers of the module
        for point in self._points.values():
            site = point.site
            fire = partial(self._fire, point)
            if isinstance(site, InputSite):
                self._inputs[site.module].append((site, fire))
            elif isinstance(site, OutputSite):
                self._outputs[site.module].append((site, fire))
            elif isinstance(site, AttentionSite):
                module = submodule(self._model, site.module)
                check_supported(module, point.name)
                attention[module][site.stage] = point
            elif isinstance(site, MidSite):
                self._inputs[site.module].append((site.norm, fire))
                if any(h.writes for h in self._handlers[point.name]):
                    kept = self._mids[point.name]
                    self._inputs[site.module][-1] = (
                        site.norm,
                        partial(self._fire_mid, point, kept),
                    )
                    self._outputs[site.block.module].insert(
                        0, (site.block, partial(_complete_mid, kept))
                    )
                    if site.branch is not None:
                        keep = partial(self._keep_branch, kept, site.branch)
                        tail.append((site.branch.module, (site.branch, keep)))
        for path, action in tail:
            self._outputs[path].append(action)
        return {module: self._tap_of(stages) for module, stages in attention.items()}

    def _tap_of(self, stages: Mapping[str, Point]) -> Callable:
        tap = partial(self._tap, stages)
        joined = next(iter(stages.values())).site.joined
        if not joined:
            return tap
        chunked = ChunkedTap(tap)
        self._inputs[joined].insert(0, (InputSite(joined, keyword="input"), chunked.finish))
        return chunked

    def place(self, *, offset: int, length: int | None, rows: int) -> None:
        """Says what the modules called next work on, where they are not called by the model.

        Args:
            offset: Position in the whole sequence of the first position that they get.
            length: How many positions.
            rows: How many rows.
        """
        self._offset, self._length, self._rows = offset, length, rows

    def watches(self, *names: str) -> bool:
        """Whether one of these points has a handler."""
        return any(name in self._handlers for name in names)

    def pass_through(self, name: str, x: Tensor) -> Tensor:
        """An activation as its handlers leave it, where no module call lets them see it."""
        if name not in self._handlers:
            return x
        new = self._fire(self._points[name], x)
        return x if new is None else new

    def _start_forward(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        past = kwargs.get("past_key_values")
        self._offset = int(past.get_seq_length()) if past is not None else 0
        tokens = kwargs.get("input_ids", args[0] if args else None)
        tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
        self._length = None if tokens is None else tokens.shape[1]
        self._rows = 1 if tokens is None else tokens.shape[0]

    def _end_forward(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.place(offset=0, length=None, rows=1)

    def _fire(self, point: Point, x: Tensor) -> Tensor | None:
        view = point.site.view
        value = view.split(x, self._rows) if view else x
        firing = Firing(point, self._offset_of(point, value))
        changed = False
        for handler in self._handlers[point.name]:
            new = handler.call(value, firing)
            if new is None or new is value:
                continue
            if new.shape != value.shape:
                raise InterventionError(
                    f"A write to {point.name} has shape {list(new.shape)}; the activation has "
                    f"{list(value.shape)}."
                )
            value, changed = new.to(device=value.device, dtype=value.dtype), True
        if not changed:
            return None
        return view.join(value, x) if view else value

    def _offset_of(self, point: Point, x: Tensor) -> int:
        if point.space != "text":
            return 0
        if point.on_demand or self._length is None:
            return self._offset
        # logits may be computed for the last positions only
        return self._offset + self._length - x.shape[1]

    def _fire_mid(self, point: Point, kept: dict[str, Tensor], x: Tensor) -> Tensor | None:
        kept.clear()
        new = self._fire(point, x)
        if new is not None:
            kept["mid"] = new
            kept["before"] = x
        return new

    def _keep_branch(self, kept: dict[str, Tensor], site: OutputSite, x: Tensor) -> None:
        if "mid" in kept:
            kept["branch"] = site.view.split(x, self._rows) if site.view else x

    def _tap(self, stages: Mapping[str, Point], stage: str, x: Tensor) -> Tensor | None:
        return self._fire(stages[stage], x) if stage in stages else None


def _entry(model: nn.Module, points: PointTable) -> nn.Module:
    """The module that a generation calls for each token: the one that returns the logits.

    It is the model itself, or the language model where the model generates with that alone.
    """
    site = points["hook_logits"].site if "hook_logits" in points else None
    named = isinstance(site, OutputSite) and site.path == ("logits",)
    return submodule(model, site.module) if named else model


def _complete_mid(kept: dict[str, Tensor], x: Tensor) -> Tensor | None:
    if "mid" not in kept:
        return None
    mid, before = kept.pop("mid"), kept.pop("before")
    if "branch" not in kept:
        return x + (mid - before)
    return (mid + kept.pop("branch")).view_as(x)


def _run_inputs(actions: Sequence[Action], module: nn.Module, args: tuple, kwargs: dict[str, Any]):
    changed = False
    for site, act in actions:
        value = site.get(args, kwargs)
        if value is None:
            continue
        new = act(value)
        if new is not None:
            args, kwargs = site.put(args, kwargs, new)
            changed = True
    return (args, kwargs) if changed else None


def _run_outputs(actions: Sequence[Action], module: nn.Module, args: tuple, output: Any) -> Any:
    changed = False
    for site, act in actions:
        new = act(site.get(output))
        if new is not None:
            output = site.put(output, new)
            changed = True
    return output if changed else None


def count_hooks(model: torch.nn.Module) -> int:
    """How many forward hooks stand on a model; tests use it to see that none is left behind."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
