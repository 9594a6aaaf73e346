"""nnsight's deferred tracing under this package's names of points.

```python
with vlm.trace(prompt) as tr:
    tr["blocks.3.hook_resid_post"][tr.at(Last())] = vector      # a write
    z = tr["blocks.4.attn.hook_z"].save()                       # a read, kept after the block
    logits = tr.logits.save()
```

The body of the block runs in step with the model, as nnsight runs it; points come in the order in
which the model computes them. What is behind the names is this package's own engine: the model gets
no controllers of nnsight, every point of the family is there (patterns, heads, tower, projector),
and an edit is a functional write that acts at once.

nnsight 0.8 moved what tracers are made of (0.5 and 0.7 had other modules): the range of versions in
`pyproject.toml` is what this file is written against.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from types import CodeType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from vlm_lens.errors import InterventionError, ModelError, PointError, PromptError
from vlm_lens.hooked.hooked_model import HookedModel, Interventions
from vlm_lens.hooked.request import names_to_read
from vlm_lens.layout.layout import Layout
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.points.point import Point
from vlm_lens.prompts.prompt import Prompt

try:
    from nnsight.intervention.envoy import Envoy
    from nnsight.intervention.eproperty import WriteBack
    from nnsight.intervention.interleaver import Mediator
    from nnsight.intervention.tracer import InterleavingTracer
except ImportError as error:  # an extra
    raise ModelError(
        f"nnsight 0.8 cannot be imported ({error}): pip install 'vlm-lens[interop]'."
    ) from error


class Trace(InterleavingTracer):
    """A traced run of one prompt; see `HookedVLM.trace`.

    Args:
        vlm: The model.
        prompt: The prompt, of one or more rows.
        interventions: What to change before the block sees an activation.
        grad: Whether to record gradients.
    """

    def __init__(
        self, vlm: HookedModel, prompt: Prompt, *, interventions: Interventions, grad: bool
    ):
        # An envoy of nothing: its interleaver is fed by this package's hooks.
        super().__init__(Envoy(nn.Module()), self._run, prompt)
        self.prompt = prompt
        self._vlm: HookedModel | None = vlm
        self._table = vlm.points()
        self._interventions, self._grad = interventions, grad
        self._fires: tuple[str, ...] = ()

    # ------------------------------------------------------------------ in the block

    @property
    def layout(self) -> Layout:
        """The coordinates of the prompt's first row."""
        return self.prompt.layout

    def at(self, position: Position | int, space: str = "text") -> tuple[Tensor, Tensor]:
        """Rows and positions of a place, to index an activation with.

        Args:
            position: The place, in every row of the prompt.
            space: Whose positions: `"text"`, `"vision"` or `"projector"`.
        """
        where = as_position(position)
        cells = [cell for layout in self.prompt.layouts for cell in where.resolve(layout, space)]
        rows, positions = torch.tensor(cells).T
        return rows, positions

    def __getitem__(self, name: str | tuple) -> Tensor:
        """A point's activation; edits of it in place act in the run.

        Raises:
            PointError: There is no such point, or this prompt does not compute it.
        """
        point = self._point(name)
        mediator = Mediator.current(point.name)
        occurrence = mediator.wanted(point.name)
        waiting = mediator.transform
        if waiting is not None and waiting.key == (self, point.name, occurrence):
            return waiting.view
        x: Tensor = Mediator.value(point.name)
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
        """The run's logits, `[batch, pos, d_vocab]`."""
        return Mediator.value("result")

    def invoke(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: a trace runs one prompt."""
        raise PromptError(
            "A trace runs the prompt that it was opened with: give several rows as one prompt, "
            "vlm.prompt([text, text], [[picture], [picture]])."
        )

    def cache(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: there are no modules here to keep."""
        raise PointError("Read points by name, tr[name].save(), or call vlm.run_with_cache.")

    # ------------------------------------------------------------------ the run

    def execute(self, code: CodeType) -> None:
        """Runs the block in step with the model."""
        vlm = self._vlm
        self._fires = (
            *names_to_read(vlm.architecture.points, self.prompt, None, None),
            *self._attention_asked_for(),
        )
        super().execute(code)

    def __exit__(self, *exc: Any) -> bool:
        try:
            return super().__exit__(*exc)
        finally:
            self._vlm = None  # the name of the trace outlives the block

    def _run(self, prompt: Prompt) -> Tensor:
        handle = self.envoy.interleaver.handle

        def offer(x: Tensor, hook: Any) -> Tensor | None:
            new = handle(hook.name, x)
            return None if new is x or torch.equal(new, x) and not self._grad else new

        return self._vlm.run_with_hooks(
            prompt, fwd_hooks=[(list(self._fires), offer)], interventions=self._interventions,
            grad=self._grad,
        )  # fmt: skip

    def _point(self, name: str | tuple) -> Point:
        point = self._table[name]
        if point.name not in self._fires:
            how = (
                "write its name in the block as it is, so that attention is computed for it"
                if "query" in point.axes
                else "this prompt does not compute it"
            )
            raise PointError(f"{point.name} does not fire in this trace: {how}.")
        return point

    def _attention_asked_for(self) -> Sequence[str]:
        """Scores and patterns that the block names; they cost a layer's attention once more."""
        strings = [
            node.value
            for node in ast.walk(ast.Module(self.node.body, []))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        named = [name for name in strings if "pattern" in name or "attn_scores" in name]
        known = [self._table[name].name for name in named if name in self._table]
        if len(known) < len(named):  # a name put together, f"blocks.{i}.attn.hook_pattern"
            known += [n for n, p in self._table.items() if "query" in p.axes and p.space == "text"]
        return tuple(dict.fromkeys(known))


__all__ = ["Trace"]
