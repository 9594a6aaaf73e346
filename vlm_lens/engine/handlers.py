"""Handlers for one run: ops that write and are counted, functions of the user, readers."""

from __future__ import annotations

import sys
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vlm_lens.engine.firing import Firing, Handler
from vlm_lens.engine.ownership import calling
from vlm_lens.errors import InterventionError
from vlm_lens.interventions.base import Composed, Intervention, Target
from vlm_lens.ops import SET, IncompleteMean, NoKeyLeft, Op, TooLarge, apply_op
from vlm_lens.points.point import Point
from vlm_lens.serial import LearnedTensor


@dataclass
class Counter:
    """Counts what an intervention has written, so that one without effect is an error."""

    intervention: Intervention
    point: str
    at_generated: bool = False
    tally: dict[str, int] = field(default_factory=lambda: {"written": 0})

    def __getstate__(self) -> dict[str, Any]:
        """A counter that is sent elsewhere counts there; who asked is known here."""
        return {**vars(self), "intervention": None}

    @property
    def written(self) -> int:
        """How many elements."""
        return self.tally["written"]

    def add(self, written: int) -> None:
        """Counts elements that have been written."""
        self.tally["written"] += written

    def check(self) -> None:
        """Raises if nothing was written.

        Raises:
            InterventionError: The point never fired, or none of the places came by.
        """
        if not self.written:
            raise InterventionError(
                f"{self.intervention!r} touched no element: {self.point} did not fire at any of "
                "its places in this run, so the result is that of a run without it."
            )


@dataclass(frozen=True)
class Hook:
    """What a user's function is told: TransformerLens's `hook` argument.

    Attributes:
        point: The point.
        ctx: A dictionary of its own for each function and point, kept for one run.
    """

    point: Point
    ctx: dict[str, Any]

    @property
    def name(self) -> str:
        """The point's name."""
        return self.point.name

    def layer(self) -> int:
        """The 0-based block.

        Raises:
            InterventionError: The point is outside the blocks.
        """
        if self.point.layer is None:
            raise InterventionError(f"{self.name} belongs to no layer.")
        return self.point.layer


def op_handlers(
    interventions: Composed, target: Target, *, steps: int = 1
) -> tuple[list[tuple[str, Handler]], list[tuple[str, Handler]], list[Counter]]:
    """Handlers for interventions: those that write, and readers of their sources.

    Readers are to come after everything that writes there. The counters, third, check that each
    intervention has acted.

    Args:
        interventions: What to change.
        target: The model and the prompt.
        steps: How many tokens will be generated at the most.

    Raises:
        InterventionError: Something acts at generated tokens, and none will be read.
    """
    handlers, counters = [], []
    sources: list[tuple[str, Handler]] = []
    for intervention in interventions:
        for op in intervention.lower(target):
            if op.since is not None and steps < 2:
                raise InterventionError(
                    f"{intervention!r} acts on tokens generated after the prompt, and this run "
                    "reads none: call generate with max_new_tokens of 2 or more (the first new "
                    "token comes from the prompt's last position)."
                )
            counter = Counter(intervention, op.point, at_generated=op.since is not None)
            counters.append(counter)
            handler, source = op_handler(op, counter)
            handlers.append((op.point, handler))
            sources += [(op.source, source)] if source else []
    return handlers, sources, counters


def check_gets_gradient(interventions: Composed, grad: bool | None) -> None:
    """Refuses a value that is being learned in a run that could record gradients and does not.

    Args:
        interventions: What to change.
        grad: Whether the run records gradients; `None` where none can (generation).

    Raises:
        InterventionError: It would get no gradient.
    """
    if grad is not False or not torch.is_grad_enabled():
        return
    for intervention in interventions:
        if any(isinstance(value, LearnedTensor) for value in vars(intervention).values()):
            raise InterventionError(
                f"{intervention!r} holds a tensor that requires grad, and this run records none: "
                "pass grad=True, or run under torch.no_grad() to use the tensor as it is now."
            )


def op_handler(op: Op, counter: Counter) -> tuple[Handler, Handler | None]:
    """The handler that applies an op and counts what it wrote, and the one that reads its source.

    The second is `None` for an op without a source; it comes after the writers there.
    """
    held: list[Tensor] = []  # of the block that is running

    def hold(x: Tensor, firing: Firing) -> None:
        held[:] = [x]

    reader = Handler(hold, writes=False) if op.source else None
    apply = partial(_apply, op, counter, held)
    if op.since is not None:
        return Handler(apply, queries=range(op.since, sys.maxsize)), reader
    if op.kind == SET:
        # rows computed alone differ in the last bits from those that were read with all the others,
        # and what was read and is written back must change nothing
        return Handler(apply), reader
    return Handler(apply, queries=frozenset(op.positions)), reader


def _apply(
    op: Op, counter: Counter, held: list[Tensor], x: Tensor, firing: Firing
) -> Tensor | None:
    if op.source and not held:
        raise InterventionError(
            f"What is written at {op.point} is made of {op.source}, which has not been computed "
            "when the model comes there."
        )
    source = held.pop() if op.source else None
    pattern = "query" in firing.point.axes
    width = op.tensors["value"].shape[-1] if "value" in op.tensors else 1
    if width not in (1, x.shape[-1]):
        raise InterventionError(
            f"A value for {op.point} has {width} entries on its last axis; the activation of this "
            f"run has {x.shape[-1]}."
        )
    try:
        new, written = apply_op(
            op, x.transpose(1, 2) if pattern else x, firing.offset, firing.queries, firing.length,
            source, firing.n_keys,
        )  # fmt: skip
    except IncompleteMean as error:
        raise InterventionError(
            f"A mean at {op.point} cannot be taken in this run, which computes the positions of "
            f"the prompt in pieces ({error}): leave prefill_chunk_size and last_logits out, or "
            "give the mean as a value, Mean.of(vlm, prompts, points)."
        ) from None
    except TooLarge as error:
        raise InterventionError(
            f"A value at {op.point} is larger than this model's numbers can be ({error}), so it "
            "would be infinite: make it smaller, or load the model in bfloat16 or float32."
        ) from None
    except NoKeyLeft as error:
        raise InterventionError(
            f"The change of attention at {op.point} leaves a query no key to attend to, or none "
            f"for the rest of its weight ({error}): leave it at least one, itself for example."
        ) from None
    if not written:
        return None
    counter.add(written)
    return new.transpose(1, 2) if pattern else new


PutBack = Callable[[Tensor, Tensor, Firing], Tensor]


def read_handler(
    store: MutableMapping[str, Tensor],
    keep: Callable[[Tensor, Firing], Tensor],
    put_back: PutBack | None = None,
    queries: frozenset[int] | None = None,
) -> Handler:
    """A handler that keeps what it sees; a point that fires again is joined on its first axis.

    Args:
        store: Point name -> what is kept.
        keep: `(activation, firing) -> what is kept of it`.
        put_back: `(activation, kept, firing) -> activation` with what is kept in its place, where
            that is a copy: while gradients are recorded, what is kept must be what goes on.
        queries: Of scores and patterns, the queries that `keep` needs; see `Handler`.
    """

    def read(x: Tensor, firing: Firing) -> Tensor | None:
        value = keep(x, firing)
        name = firing.point.name
        recorded = torch.is_grad_enabled() and value.requires_grad
        if name in store:
            if recorded:
                raise InterventionError(
                    f"{name} is computed several times in this run, so what is read is joined and "
                    "has no gradient: read it without grad=True."
                )
            if store[name].shape[1:] != value.shape[1:]:
                raise InterventionError(
                    f"{name} is computed once for each picture, and pictures of different sizes "
                    "cannot be joined in one tensor: read it with one picture at a time."
                )
            value = torch.cat([store[name], value])
        store[name] = value
        copied = recorded and put_back is not None and value is not x
        return put_back(x, value, firing) if copied else None

    return Handler(read, writes=False, queries=queries)


def user_handler(fn: Callable[[Tensor, Hook], Tensor | None]) -> Handler:
    """A handler for a user's function.

    The function is given a copy, so that what was read before is not changed by an edit in place;
    such an edit counts as a replacement, also where the function returns nothing.
    """
    ctx: dict[str, dict] = {}

    def call(x: Tensor, firing: Firing) -> Tensor:
        name = firing.point.name
        copy = x.clone()
        with calling(fn, name):
            result = fn(copy, Hook(firing.point, ctx.setdefault(name, {})))
        if result is not None and not isinstance(result, Tensor):
            raise InterventionError(
                f"The hook at {name} returned a {type(result).__name__}: return a tensor or None."
            )
        result = copy if result is None else result
        if firing.point.read_only and not torch.equal(result, x):
            raise InterventionError(
                f"The hook at {name} changed it, which has no effect: {firing.point.read_only}."
            )
        return result

    return Handler(call)
