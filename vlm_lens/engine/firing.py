"""Calls the handlers of a run when their points fire, whoever brings it the activations.

Torch hooks do, or nnsight, here or in the process of a remote service: a `Dispatcher` says which
function is called at the input or output of which module, and holds nothing of the model.

Where gradients are recorded, what a handler is shown is what the model goes on with:

    x --split--> activation --handlers--> activation --join--> x'     (x' goes on)

so that a gradient taken at the activation is that of the point. Where none are recorded and no
handler writes, `x` itself goes on, bit for bit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlm_lens.engine.attention import ChunkedTap, Tap, check_supported
from vlm_lens.engine.mid_write import MidWrite
from vlm_lens.engine.ownership import Owner
from vlm_lens.errors import InterventionError
from vlm_lens.points.point import Point
from vlm_lens.points.sites import (
    AttentionSite,
    InputSite,
    MidSite,
    OutputSite,
    laid_as,
    submodule,
)
from vlm_lens.points.table import PointTable

INPUT, OUTPUT = "input", "output"
# under which names a model is handed what it keeps of the positions that it has read
_PAST = ("past_key_values", "cache_params", "state", "past_buckets_states")


@dataclass(frozen=True)
class Firing:
    """What a handler is told beside the activation.

    Attributes:
        point: The point that fires.
        offset: Position in the whole sequence of the activation's first position: 0 in a plain
            forward, the number of cached tokens when generating.
        queries: The positions of the queries that scores or a pattern hold; `None` for all.
        length: With `queries`: positions of the whole sequence so far.
        n_keys: How many columns of scores or a pattern are keys, the last ones of `length` where a
            cache holds no more; sinks that are no position come after them.
    """

    point: Point
    offset: int
    queries: tuple[int, ...] | None = None
    length: int | None = None
    n_keys: int | None = None


@dataclass(frozen=True)
class Handler:
    """A function called when a point fires.

    Attributes:
        call: `(activation, firing) -> replacement`, or `None` to leave it.
        writes: Whether it may replace the activation's values.
        queries: Of scores and patterns, the positions of the queries that it reads or writes;
            others need not be computed. `None` for all.
    """

    call: Callable[[Tensor, Firing], Tensor | None]
    writes: bool = True
    queries: Container[int] | None = None


_FIRST, _USUAL, _LAST = 0, 1, 2  # in which order a module's actions run


@dataclass(frozen=True)
class _Action:
    """What is done with one input or output of a module: shown to handlers, completed, kept."""

    site: InputSite | OutputSite
    call: Callable[[Tensor], Tensor | None]
    order: int = _USUAL


@dataclass(frozen=True)
class ModuleHook:
    """A function to be called at a module's input or output.

    Attributes:
        path: The module's path.
        side: `"input"`: `call(module, args, kwargs) -> (args, kwargs)`; or `"output"`:
            `call(module, args, output) -> output`. `None` leaves what it is shown.
        call: The function.
    """

    path: str
    side: str
    call: Callable


@dataclass(frozen=True)
class Attachments:
    """What is to be called where.

    Attributes:
        hooks: The functions; each comes before those in front of it at the same place.
        taps: For each attention module with a handler, what its scores and pattern are shown to.
        modules: Paths of the modules at which points are read or changed.
    """

    hooks: list[ModuleHook]
    taps: dict[nn.Module, Tap | ChunkedTap]
    modules: set[str]


class Dispatcher:
    """Calls handlers when their points fire.

    Args:
        points: The model's points.
        handlers: Point name -> handlers, called in order. Readers should come after writers.

    Attributes:
        fired: Names of the points that have fired.
    """

    def __init__(self, points: PointTable, handlers: Mapping[str, Sequence[Handler]]):
        self.fired: set[str] = set()
        self._handlers = {name: handlers[name] for name in points if handlers.get(name)}
        self._points = {name: points[name] for name in self._handlers}
        self._offset = self._end = 0
        self._length: int | None = None
        self._rows = 1
        self._generates = False
        self._entry = _entry(points)
        self._inner = [path for path in _holders(points) if path not in ("", self._entry)]
        self._running: nn.Module | None = None  # whose forward began this step
        merged = "encoder.hook_merged"
        self._encoder_reads = points[merged].site if merged in points else None
        self._owner = Owner()

    def attachments(self, model: nn.Module) -> Attachments:
        """What a run of the model has to call at which module."""
        self._owner = Owner()
        actions = [action for point in self._points.values() for action in self._actions(point)]
        taps, more = self._taps(model)
        actions = sorted([*more, *actions], key=lambda action: action.order)
        starts = dict.fromkeys(("", self._entry))
        hooks = [ModuleHook(path, INPUT, self._start_forward) for path in starts]
        hooks += [ModuleHook(path, OUTPUT, self._end_forward) for path in starts]
        # a model may generate with a part of itself, which is then what each step calls first
        hooks += [ModuleHook(path, INPUT, self._start_inner) for path in self._inner]
        hooks += [ModuleHook(path, OUTPUT, self._end_inner) for path in self._inner]
        inputs: dict[str, list[_Action]] = defaultdict(list)
        outputs: dict[str, list[_Action]] = defaultdict(list)
        for action in actions:
            side = inputs if isinstance(action.site, InputSite) else outputs
            side[action.site.module].append(action)
        hooks += [ModuleHook(p, INPUT, partial(self._on_input, mine)) for p, mine in inputs.items()]
        hooks += [
            ModuleHook(p, OUTPUT, partial(self._on_output, mine)) for p, mine in outputs.items()
        ]
        if self._encoder_reads:
            hooks.append(ModuleHook(self._encoder_reads.module, INPUT, self._start_encoding))
        modules = {action.site.module for action in actions}
        modules |= {
            p.site.module for p in self._points.values() if isinstance(p.site, AttentionSite)
        }
        return Attachments(hooks, taps, modules)

    def _actions(self, point: Point) -> Iterator[_Action]:
        """What must be done at modules for a point; nothing for those of attention."""
        site, fire = point.site, partial(self._fire, point)
        if isinstance(site, InputSite | OutputSite):
            yield _Action(site, fire)
        elif isinstance(site, MidSite):
            writes = any(h.writes for h in self._handlers[point.name]) or torch.is_grad_enabled()
            middle = MidWrite(fire, site.branch, lambda: self._rows)
            yield _Action(site.norm, middle.write if writes else fire)
            if writes:
                yield _Action(site.block, middle.complete, _FIRST)
                if site.branch is not None:
                    yield _Action(site.branch, middle.keep_branch, _LAST)

    def _taps(self, model: nn.Module) -> tuple[dict[nn.Module, Tap | ChunkedTap], list[_Action]]:
        """For each attention module with a handler, what its scores and pattern are shown to."""
        stages: dict[nn.Module, dict[str, Point]] = defaultdict(dict)
        for point in self._points.values():
            if isinstance(point.site, AttentionSite):
                module = submodule(model, point.site.module)
                check_supported(module, point.name)
                stages[module][point.site.stage] = point
        taps: dict[nn.Module, Tap | ChunkedTap] = {}
        actions = []
        for module, mine in stages.items():
            tap = taps[module] = Tap(partial(self._tap, mine), self._rows_read(mine))
            joined = next(iter(mine.values())).site.joined
            if joined:
                chunked = taps[module] = ChunkedTap(tap, self._owner.here)
                site = InputSite(joined, keyword="input")
                actions.append(_Action(site, chunked.finish, _FIRST))
        return taps, actions

    def _rows_read(self, stages: Mapping[str, Point]) -> Callable[[int], list[int] | None]:
        """Which queries the handlers of a module's scores and pattern need; see `Tap`."""
        needed = [h.queries for point in stages.values() for h in self._handlers[point.name]]
        if any(queries is None for queries in needed):
            return lambda n_queries: None
        in_text = next(iter(stages.values())).space == "text"

        def rows(n_queries: int) -> list[int]:
            offset = self._offset if in_text else 0
            return [i for i in range(n_queries) if any(i + offset in q for q in needed)]

        return rows

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
        if not self._owner.here():
            if self._owner.in_handler and self._generates:
                raise InterventionError(
                    "A function runs the model while it generates, and models keep what they know "
                    "of a generation in themselves: run another model, or copy.deepcopy this one."
                )
            return
        self._running = self._running or module
        past = next((x for name in _PAST if (x := kwargs.get(name)) is not None), None)
        self._generates = past is not None
        self._offset = self._positions_in(past)
        given = (kwargs.get(n) for n in ("decoder_input_ids", "input_ids", "inputs_embeds"))
        tokens = next((x for x in given if x is not None), args[0] if args else None)
        self._length = None if tokens is None else tokens.shape[1]
        self._rows = 1 if tokens is None else tokens.shape[0]

    def _positions_in(self, past: Any) -> int:
        """How many positions a cache stands for; one of states alone does not know."""
        if past is None:
            return 0
        try:
            return int(past.get_seq_length())
        except (AttributeError, TypeError, ValueError):
            return self._end  # what the generation has read so far

    def _start_encoding(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._owner.here():  # a generation encodes before it calls the model
            self._rows = len(self._encoder_reads.get(args, kwargs))

    def _end_forward(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self._owner.here():
            self._end = max(self._end, self._offset + (self._length or 0))
            self.place(offset=0, length=None, rows=1)
            self._running = None if module is self._running else self._running

    def _start_inner(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._running is None:
            self._start_forward(module, args, kwargs)

    def _end_inner(self, module: nn.Module, args: tuple, output: Any) -> None:
        if module is self._running:
            self._end_forward(module, args, output)

    def _on_input(
        self, actions: Sequence[_Action], module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict] | None:
        if not self._owner.here():
            return None
        changed = False
        for action in actions:
            value = action.site.get(args, kwargs)
            new = None if value is None else action.call(value)
            if value is not None and new is not None:
                args, kwargs = action.site.put(args, kwargs, laid_as(new, value))
                changed = True
        return (args, kwargs) if changed else None

    def _on_output(
        self, actions: Sequence[_Action], module: nn.Module, args: tuple, output: Any
    ) -> Any:
        if not self._owner.here():
            return None
        changed = False
        for action in actions:
            value = action.site.get(output)
            new = action.call(value)
            if new is not None:
                output = action.site.put(output, laid_as(new, value))
                changed = True
        return output if changed else None

    def _fire(
        self,
        point: Point,
        x: Tensor,
        queries: tuple[int, ...] | None = None,
        length: int | None = None,
        n_keys: int | None = None,
    ) -> Tensor | None:
        """Shows a point's activation to its handlers; what goes on, `None` for `x` itself."""
        self.fired.add(point.name)
        view = point.site.view
        value = view.split(x, self._rows) if view else x
        recorded = torch.is_grad_enabled() and value.is_floating_point()
        if recorded:  # a tensor of its own, because x may also be read elsewhere
            value = value.view_as(value) if x.requires_grad else value.detach().requires_grad_()
        firing = Firing(point, self._offset_of(point, value), queries, length, n_keys)
        written = False
        for handler in self._handlers[point.name]:
            self._owner.in_handler = True
            try:
                new = handler.call(value, firing)
            finally:
                self._owner.in_handler = False
            if new is None or new is value:
                continue
            if new.shape != value.shape:
                raise InterventionError(
                    f"A write to {point.name} has shape {list(new.shape)}; the activation has "
                    f"{list(value.shape)}."
                )
            value, written = new.to(device=value.device, dtype=value.dtype), True
        if view:
            return view.join(value, x) if written or recorded else None
        return None if value is x else value

    def _offset_of(self, point: Point, x: Tensor) -> int:
        if point.space != "text":
            return 0
        if point.on_demand or self._length is None:
            return self._offset
        # logits may be computed for the last positions only
        return self._offset + self._length - x.shape[1]

    def _tap(
        self, stages: Mapping[str, Point], stage: str, x: Tensor, rows: Sequence[int] | None,
        n_keys: int,
    ) -> Tensor | None:  # fmt: skip
        if stage not in stages or not self._owner.here():
            return None
        offset = self._offset if stages[stage].space == "text" else 0
        queries = None if rows is None else tuple(row + offset for row in rows)
        known = stages[stage].space == "text" and self._length is not None
        length = offset + self._length if known else x.shape[-1]
        return self._fire(stages[stage], x, queries, length, n_keys)


def _holders(points: PointTable) -> list[str]:
    """Paths of the modules that the text model's blocks stand in, the outermost first."""
    name = "blocks.0.hook_resid_post"
    first = points[name].site if name in points else None
    parts = first.module.split(".")[:-2] if isinstance(first, OutputSite) else []
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def _entry(points: PointTable) -> str:
    """Path of the module that a generation calls for each token: the one that returns the logits.

    It is the model itself, or the language model where the model generates with that alone.
    """
    site = points["hook_logits"].site if "hook_logits" in points else None
    named = isinstance(site, OutputSite) and site.path == ("logits",)
    return site.module if named else ""
