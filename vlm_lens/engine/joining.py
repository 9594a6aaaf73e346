"""Ops of many variants as the handlers of one run in which each variant has rows of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlm_lens.engine.handlers import Counter, op_handler
from vlm_lens.engine.hooks import Handler
from vlm_lens.ops import MEAN, Op

Counted = tuple[Op, Counter]


def joined_handlers(variants: Iterable[Sequence[Counted]]) -> dict[str, list[Handler]]:
    """Handlers for ops whose rows and positions are those of the joint run.

    Ops of different variants at one point touch different places, so they act as one: the first op
    of every variant there, then the second of every variant, and so on.

    Args:
        variants: For each variant, its ops in order, each with its counter.
    """
    turns: dict[tuple, list[Counted]] = {}
    for ops in variants:
        seen: dict[str, int] = {}
        for op, counter in ops:
            turn = seen[op.point] = seen.get(op.point, -1) + 1
            value = op.tensors.get("value")
            form = None if value is None else tuple(value.shape[1:])
            turns.setdefault((turn, op.point, op.kind, op.heads, form), []).append((op, counter))
    handlers: dict[str, list[Handler]] = {}
    for (_, name, *_), acting in sorted(turns.items(), key=lambda item: item[0][0]):
        joined = _joined([op for op, _ in acting])
        counter = _Counters([c for _, c in acting])
        handlers.setdefault(name, []).append(op_handler(joined, counter))
    return handlers


@dataclass
class _Counters:
    """Several counters that act as one."""

    each: list[Counter]
    total: int = 0

    @property
    def written(self) -> int:
        return self.total

    @written.setter
    def written(self, value: int) -> None:
        for counter in self.each:
            counter.written += value - self.total
        self.total = value


def _joined(ops: Sequence[Op]) -> Op:
    """Ops of one kind at one point, at different places, as one op."""
    if len(ops) == 1:
        return ops[0]
    rows = tuple(r for op in ops for r in op.rows)
    positions = tuple(p for op in ops for p in op.positions)
    if ops[0].kind == MEAN:
        tensors = _joined_means([op.tensors for op in ops])
    else:
        values = [v.expand(len(op.rows), *v.shape[1:]) for op in ops for v in [op.tensors["value"]]]
        tensors = {"value": torch.cat(values)}
    return replace(ops[0], rows=rows, positions=positions, tensors=tensors)


def _joined_means(each: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Pools of several ops as one, their means numbered on."""
    pools, takes, made = [], [], 0
    for tensors in each:
        pools.append(tensors["pool"] + torch.tensor([0, 0, made]))
        takes.append(tensors["takes"] + made)
        made += int(tensors["takes"].max()) + 1
    return {"pool": torch.cat(pools), "takes": torch.cat(takes)}
