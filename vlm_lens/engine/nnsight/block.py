"""What the block of a trace is given, and how a block runs where the model is.

```
model --a point fires--> offer --nnsight's interleaver--> the block, waiting for that point's name
model <-----------------  what the block has made of it  <--
```
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from nnsight.intervention.envoy import Envoy
from nnsight.intervention.eproperty import WriteBack
from nnsight.intervention.interleaver import EarlyStopException, Mediator, OutOfOrderError
from nnsight.tracing.tracer import _saves
from torch import Tensor, nn

from vlm_lens.errors import InterventionError, PointError, near_matches
from vlm_lens.layout.layout import Layout
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.points.point import Point, expand_name


class BlockView:
    """A run as a block sees it: points by name, positions, logits.

    Args:
        points: The model's points by name.
        aliases: Other names of them.
        layouts: The layout of each row of the prompt.
        fires: Names of the points that fire in the run.
    """

    def __init__(
        self,
        points: Mapping[str, Point],
        aliases: Mapping[str, str],
        layouts: Sequence[Layout],
        fires: Sequence[str] = (),
    ):
        self.points, self.aliases = dict(points), dict(aliases)
        self.layouts, self.fires = tuple(layouts), tuple(fires)
        self._latest = ""  # what the block has been given last

    @property
    def layout(self) -> Layout:
        """The coordinates of the prompt's only row, or the first."""
        return self.layouts[0]

    def at(self, position: Position | int, space: str = "text") -> tuple[Tensor, Tensor]:
        """Rows and positions of a place, to index an activation with.

        Args:
            position: The place, in every row of the prompt.
            space: Whose positions: `"text"`, `"vision"` or `"projector"`.
        """
        where = as_position(position)
        cells = [cell for layout in self.layouts for cell in where.resolve(layout, space)]
        rows, positions = torch.tensor(cells).T
        return rows, positions

    def __getitem__(self, name: str | tuple) -> Tensor:
        """A point's activation; edits of it in place act in the run.

        Raises:
            PointError: There is no such point, this prompt does not compute it, the model has
                computed it before what the block has asked for already, or no block is running.
        """
        mediator = _mediator(str(name))
        point = self._point(name)
        occurrence = mediator.wanted(point.name)
        waiting = mediator.transform
        if waiting is not None and waiting.key == (self, point.name, occurrence):
            return waiting.view
        x = self._value(point.name)
        if not point.read_only:
            mediator.transform = WriteBack(lambda: x, x, self, point.name, occurrence)
        return x

    def __setitem__(self, name: str | tuple, value: Any) -> None:
        """Puts another activation in a point's place.

        Raises:
            PointError: There is no such point, or this prompt does not compute it.
            InterventionError: The point cannot be written, or the value has another shape.
        """
        point = self._point(name)
        if point.read_only:
            raise InterventionError(f"{point.name} cannot be written: {point.read_only}.")
        if not isinstance(value, Tensor):
            raise InterventionError(f"{point.name} takes a tensor, not {type(value).__name__}.")
        current = self[name]
        if value is not current and value.shape != current.shape:
            raise InterventionError(
                f"{point.name} has the shape {list(current.shape)} in this run, and the value "
                f"{list(value.shape)}: index the places that it is meant for, tr[name][...] = x."
            )
        Mediator.swap(point.name, value)

    @property
    def logits(self) -> Tensor:
        """The run's logits, `[batch, pos, d_vocab]`; no point can be asked for after them."""
        if self._latest != "logits":
            self._logits = self._value("result", called="logits")
        return self._logits

    def _value(self, location: str, called: str = "") -> Tensor:
        """What the run has at a location, waited for."""
        mediator = _mediator(called or location)
        try:
            value: Tensor = Mediator.value(location)
        except OutOfOrderError as error:
            if mediator.iteration != 0 or not mediator.occurrence(location):
                raise  # a loop over runs that has come to its end, or a run that ended before
            raise PointError(
                f"{called or location} was asked for after {self._latest}, and the model computes "
                "it before: ask for what a block reads and writes in the order in which the model "
                "computes it (vision tower, projector, embeddings, blocks from 0, logits), and "
                "keep what is needed later in a variable."
            ) from error
        self._latest = called or location
        return value

    def stop(self) -> None:
        """Ends the run here; what has been saved is kept."""
        raise EarlyStopException()

    def _point(self, name: str | tuple) -> Point:
        if isinstance(name, tuple) and len(name) > 1 and isinstance(name[1], int) and name[1] < 0:
            layers = [p.layer for p in self.points.values() if p.space == "text" and p.layer]
            name = (name[0], max(layers) + 1 + name[1], *name[2:])
        full = expand_name(name)
        full = self.aliases.get(full, full)
        if full not in self.points:
            raise PointError(
                f"There is no point {full!r}.{near_matches(full, self.points)} "
                "`vlm.points()` lists every point of this model."
            )
        point = self.points[full]
        if full not in self.fires:
            how = (
                "write its name in the block as it is, so that attention is computed for it"
                if "query" in point.axes
                else "this prompt does not compute it"
            )
            raise PointError(f"{full} does not fire in this trace: {how}.")
        return point


def _mediator(name: str) -> Mediator:
    """Nnsight's side of the block that is running.

    Raises:
        PointError: None is.
    """
    try:
        return Mediator.current(name)
    except ValueError as error:
        raise PointError(
            f"{name} can be asked for only while a block runs: read it within `with "
            "vlm.trace(prompt) as tr:`, and `.save()` what is needed after the block."
        ) from error


class Block:
    """A block that was written elsewhere, run in step with a model.

    Args:
        source: Its text.
        globals_: What it reads of the module it was written in.
        locals_: What it reads of the function it was written in.

    Attributes:
        saved: What it has saved, by name.
    """

    def __init__(self, source: str, globals_: dict[str, Any], locals_: dict[str, Any]):
        self.saved: dict[str, Any] = {}
        self._source, self._globals, self._locals = source, globals_, locals_

    def offer(self, x: Tensor, hook: Any) -> Tensor | None:
        """Shows it a point's activation."""
        new = self._handle(hook.name, x)
        return None if new is x or torch.equal(new, x) else new

    def __call__(self, run: Callable[[], Any]) -> Any:
        """Runs it in step with what calls the model."""
        envoy = Envoy(nn.Module())
        interleaver = envoy.interleaver
        self._handle = interleaver.handle
        mediator = Mediator(
            compile(self._source, "<trace>", "exec"), self._globals, dict(self._locals)
        )
        interleaver.mediators = [mediator]
        kept = []

        def call() -> Tensor | None:
            kept.append(run())
            return None if kept[0] is None else kept[0].logits

        envoy.interleave(call)
        saves, found = _saves(), mediator.lcls.writes()
        self.saved.update({name: value for name, value in found.items() if id(value) in saves})
        return kept[0] if kept else None


__all__ = ["Block", "BlockView"]
