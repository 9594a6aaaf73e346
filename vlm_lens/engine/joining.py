"""Ops of many variants as the handlers of one run in which each variant has rows of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from vlm_lens.engine.firing import Handler
from vlm_lens.engine.handlers import Counter, op_handler
from vlm_lens.ops import CELLS, EDGES, FOR_ALL, MEAN, Op

Cell = tuple[int, int]  # row and position of an activation


class CountedOp(NamedTuple):
    """An op and the counter of what it writes."""

    op: Op
    counter: Counter

    def on_rows(self, first: int) -> CountedOp:
        """The same op where the prompt's rows are those from `first` on."""
        rows = tuple(r + first for r in self.op.rows)
        tensors = dict(self.op.tensors)
        for name in CELLS:
            if name in tensors:
                tensors[name] = tensors[name].clone()
                tensors[name][:, 0] += first
        return CountedOp(replace(self.op, rows=rows, tensors=tensors), self.counter)

    def at_point(self, name: str) -> CountedOp:
        """The same op, served at another point."""
        return CountedOp(replace(self.op, point=name), self.counter)

    def moved(self, move: Callable[[int, int], Cell | None]) -> CountedOp:
        """The same op where each cell is another; keys that have no cell there drop out."""
        op = self.op
        rows, positions = zip(
            *(move(*c) for c in zip(op.rows, op.positions, strict=True)), strict=True
        )
        tensors = dict(op.tensors)
        for name in CELLS:
            if name in tensors:
                listed = [(move(row, p), more) for row, p, *more in tensors[name].tolist()]
                cells = [(*cell, *more) for cell, more in listed if cell is not None]
                width = tensors[name].shape[1]
                tensors[name] = torch.tensor(cells, dtype=torch.long).reshape(-1, width)
        moved = replace(op, rows=rows, positions=positions, tensors=tensors)
        return CountedOp(moved, self.counter)


def joined_handlers(variants: Iterable[Sequence[CountedOp]]) -> dict[str, list[Handler]]:
    """Handlers for ops whose rows and positions are those of the joint run.

    Ops of different variants at one point touch different cells, so they act as one: the first op
    of every variant there, then the second of every variant, and so on.

    Args:
        variants: For each variant, its ops in order.
    """
    turns: dict[tuple, list[CountedOp]] = {}
    for ops in variants:
        n_before: dict[str, int] = {}
        for counted in ops:
            op = counted.op
            turn = n_before[op.point] = n_before.get(op.point, -1) + 1
            turns.setdefault((turn, op.point, op.kind, op.heads, op.source, _form(op)), []).append(
                counted
            )
    handlers: dict[str, list[Handler]] = {}
    sources: list[tuple[str, Handler]] = []  # after what changes the activation there
    for (_, name, *_), together in sorted(turns.items(), key=lambda item: item[0][0]):
        joined = _joined([op for op, _ in together])
        counter = _Counters([c for _, c in together])
        handler, source = op_handler(joined, counter)
        handlers.setdefault(name, []).append(handler)
        sources += [(joined.source, source)] if source else []
    for name, source in sources:
        handlers.setdefault(name, []).append(source)
    return handlers


@dataclass
class _Counters:
    """Several counters that act as one."""

    each: list[Counter]

    def add(self, written: int) -> None:
        """Counts elements in each of them."""
        for counter in self.each:
            counter.add(written)


def _joined(ops: Sequence[Op]) -> Op:
    """Ops of one kind at one point, at different cells, as one op."""
    if len(ops) == 1:
        return ops[0]
    rows = tuple(r for op in ops for r in op.rows)
    positions = tuple(p for op in ops for p in op.positions)
    if ops[0].kind == MEAN:
        tensors = _joined_means([op.tensors for op in ops])
    elif ops[0].kind in EDGES:
        more = [name for name in ops[0].tensors if name != "keys"]
        tensors = {name: _for_each_place(ops, name) for name in more}
        tensors["keys"] = torch.cat([op.tensors["keys"] for op in ops])
    else:
        tensors = {
            name: value if name in FOR_ALL else _for_each_place(ops, name)
            for name, value in ops[0].tensors.items()
        }
    return replace(ops[0], rows=rows, positions=positions, tensors=tensors)


def _form(op: Op) -> tuple:
    """Ops of one kind at one point whose forms are equal can act as one."""
    return tuple(
        (name, value.data_ptr() if name in FOR_ALL else tuple(value.shape[1:]))
        for name, value in op.tensors.items()
    )


def _for_each_place(ops: Sequence[Op], name: str) -> Tensor:
    values = [(op.tensors[name], len(op.rows)) for op in ops]
    return torch.cat([value.expand(n, *value.shape[1:]) for value, n in values])


def _joined_means(each: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Pools of several ops as one, their means numbered on."""
    pools, takes, made = [], [], 0
    for tensors in each:
        pools.append(tensors["pool"] + torch.tensor([0, 0, made]))
        takes.append(tensors["takes"] + made)
        made += int(tensors["takes"].max()) + 1
    return {"pool": torch.cat(pools), "takes": torch.cat(takes)}
