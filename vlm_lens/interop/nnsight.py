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

With `remote=True` the block goes to a service with what it names, and runs there, in step with the
model that the service holds; what it saves comes home.

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

from vlm_lens.engine.nnsight.block import Block, BlockView
from vlm_lens.errors import ModelError, PointError, PromptError
from vlm_lens.hooked.hooked_model import HookedModel, Interventions
from vlm_lens.hooked.request import names_to_read
from vlm_lens.prompts.prompt import Prompt

try:
    from nnsight import save
    from nnsight.intervention.envoy import Envoy
    from nnsight.intervention.interleaver import EarlyStopException
    from nnsight.intervention.serialization import reduce_block
    from nnsight.intervention.tracer import InterleavingTracer
    from nnsight.tracing.backend import Backend
    from nnsight.tracing.util import push
except ImportError as error:  # an extra
    raise ModelError(
        f"nnsight 0.8 cannot be imported ({error}): pip install 'vlm-lens[interop]'."
    ) from error


class Trace(BlockView, InterleavingTracer):
    """A traced run of one prompt; see `HookedVLM.trace`.

    Args:
        vlm: The model.
        prompt: The prompt, of one or more rows.
        interventions: What to change before the block sees an activation.
        grad: Whether to record gradients.
        remote: Whether the block runs in a remote service.
    """

    def __init__(
        self,
        vlm: HookedModel,
        prompt: Prompt,
        *,
        interventions: Interventions,
        grad: bool,
        remote: bool = False,
    ):
        # An envoy of nothing: its interleaver is fed by this package's hooks.
        backend = _Remotely() if remote else None
        InterleavingTracer.__init__(self, Envoy(nn.Module()), self._run, prompt, backend=backend)
        table = vlm.points()
        BlockView.__init__(self, dict(table), table.aliases, prompt.layouts)
        self.prompt = prompt
        self._vlm: HookedModel | None = vlm
        self._interventions, self._grad = interventions, grad

    def invoke(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: a trace runs one prompt."""
        raise PromptError(
            "A trace runs the prompt that it was opened with: give several rows as one prompt, "
            "vlm.prompt([text, text], [[picture], [picture]])."
        )

    def cache(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: there are no modules here to keep."""
        raise PointError("Read points by name, tr[name].save(), or call vlm.run_with_cache.")

    def barrier(self, n: int) -> NoReturn:
        """Refused: there is no other block to wait for."""
        raise PromptError("A trace runs one block, which waits for no other: leave tr.barrier out.")

    def execute(self, code: CodeType) -> None:
        """Runs the block in step with the model."""
        self._find_what_fires()
        super().execute(code)

    def send(self) -> None:
        """Has the service run the block, and puts what it saves into the caller's frame."""
        self._find_what_fires()
        frame = self.info.frame
        view = BlockView(self.points, self.aliases, self.layouts, self.fires)
        names = {name: view if value is self else value for name, value in frame.f_locals.items()}
        block = Block(*reduce_block(self.node, frame.f_globals, names))
        functions = [(list(self.fires), block.offer)]
        try:
            with self._vlm._hooked(
                self.prompt, self._interventions, functions=functions, grad=self._grad,
                engine="ndif", state=[block.saved],
            ) as run:  # fmt: skip
                run.engine.around = block
                self._vlm._forward(self.prompt, run)
        except EarlyStopException:  # the block has asked for it
            pass
        for value in block.saved.values():
            save(value)
        push(frame, block.saved)

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
            prompt, fwd_hooks=[(list(self.fires), offer)], interventions=self._interventions,
            grad=self._grad,
        )  # fmt: skip

    def _find_what_fires(self) -> None:
        table = self._vlm.architecture.points
        usual = names_to_read(table, self.prompt, None, None)
        self.fires = (*usual, *self._attention_asked_for())

    def _attention_asked_for(self) -> Sequence[str]:
        """Scores and patterns that the block names; they cost a layer's attention once more."""
        strings = [
            node.value
            for node in ast.walk(ast.Module(self.node.body, []))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        table = self._vlm.architecture.points
        named = [name for name in strings if "pattern" in name or "attn_scores" in name]
        known = [table[name].name for name in named if name in table]
        if len(known) < len(named):  # a name put together, f"blocks.{i}.attn.hook_pattern"
            known += [n for n, p in table.items() if "query" in p.axes and p.space == "text"]
        return tuple(dict.fromkeys(known))


class _Remotely(Backend):
    """Has a trace sent."""

    def __call__(self, tracer: Trace) -> None:
        tracer.send()


__all__ = ["Trace"]
