"""Changes of a run by transformers and torch hooks alone: what the package's engines must equal.

Of the package this takes only where a point lies (its site). Hooks, writes, means, their order and
the batch are made here: each row of a prompt runs alone, without padding, and a cell is written by
where its numbers lie in the module's tensor, which views of numbered tensors say.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlm_lens.points.point import Point
from vlm_lens.points.sites import AttentionSite, InputSite, MidSite, OutputSite, ScaleView

Cell = tuple[int, int]


@dataclass
class PlainEdit:
    """One change of one activation of a run of one prompt.

    Attributes:
        point: Where.
        cells: Row and position of what is changed.
        kind: `"set"`, `"add"`, `"scale"`, `"clamp"`, `"remove"`, `"project"`, `"mean"`, `"block"`.
        values: For each cell, what is written, added or multiplied by: it broadcasts to
            `[(heads,) features]`; the least and the largest number of a clamp; the directions
            `[n, features]` that are removed or projected on; one number that is added to the scores
            of keys, minus infinity by default.
        pools: For each cell of a mean, the cells whose mean is written.
        heads: Which heads; all if `None`.
        keys: Row and position of what the cells, as queries, do not see, or see otherwise.
        since: Every position from this one on is changed as the first cell is.
    """

    point: Point
    cells: list[Cell]
    kind: str
    values: list[Tensor] = field(default_factory=list)
    pools: list[list[Cell]] = field(default_factory=list)
    heads: list[int] | None = None
    keys: list[Cell] = field(default_factory=list)
    since: int | None = None

    def cells_of(self, shape: Sequence[int]) -> list[tuple[int, Cell]]:
        """The cells of an activation of a shape, each with the number of its value."""
        first = shape[1] if self.since is None else self.since
        return [*enumerate(self.cells), *((0, (0, p)) for p in range(first, shape[1]))]


def maskable(model: nn.Module, point: Point) -> bool:
    """Whether the module that makes these scores is given a mask."""
    module = model.get_submodule(point.site.module)
    return "attention_mask" in inspect.signature(module.forward).parameters


@torch.no_grad()
def plain_run(model: nn.Module, inputs: dict[str, Tensor], edits: Sequence[PlainEdit]) -> Tensor:
    """Logits `[pos, d_vocab]` of a prompt of one row under changes."""
    with _editing(model, edits):
        return model(**inputs, use_cache=False).logits[0]


@torch.no_grad()
def plain_read(
    model: nn.Module,
    inputs: dict[str, Tensor],
    point: Point,
    edits: Sequence[PlainEdit] = (),
) -> Tensor:
    """The activation at a point of a prompt of one row, as its site shows it, after changes."""
    site = point.site.norm if isinstance(point.site, MidSite) else point.site
    seen: list[Tensor] = []
    with _editing(model, edits, [(site, lambda x: seen.append(_shown(site, x)))]):
        model(**inputs, use_cache=False)
    return torch.cat(seen)


@torch.no_grad()
def plain_greedy(
    model: nn.Module,
    inputs: dict[str, Tensor],
    edits: Sequence[PlainEdit],
    n_new: int,
    last: int | None = None,
) -> list[tuple[int, float]]:
    """Greedy tokens after a prompt of one row, each from a whole run, and how clear each is.

    After the token `last` nothing follows: one that stands for a picture cannot be read alone.
    """
    grown, found = dict(inputs), []
    own = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    length = inputs[own].shape[1]
    for _ in range(n_new):
        logits = plain_run(model, grown, edits)[-1].float()
        best = logits.topk(2)
        scale = logits[logits.abs() < 1e30].abs().max()
        found.append((int(best.indices[0]), float((best.values[0] - best.values[1]) / scale)))
        if found[-1][0] == last:
            break
        for name, value in grown.items():
            if own != "input_ids" and name != own:
                continue  # what an encoder reads stays as it is
            if value.dim() >= 2 and value.shape[:2] == (1, length + len(found) - 1):
                end = value[:, -1:]
                new = {own: best.indices[:1, None], "attention_mask": torch.ones_like(end)}
                grown[name] = torch.cat([value, new.get(name, end)], 1)
    return found


# ---------------------------------------------------------------------- hooks


@contextmanager
def _editing(model: nn.Module, edits: Sequence[PlainEdit], readers: Sequence[tuple] = ()):
    """Hooks that make the changes: at one point in the order given."""
    actions: list[tuple[Any, Any]] = []
    branches: list[tuple[Any, Any]] = []
    masks: list[PlainEdit] = []
    completed: list[tuple[Any, Any]] = []  # comes before changes of the block's output
    for edit in edits:
        site = edit.point.site
        if isinstance(site, AttentionSite):
            assert edit.kind == "block"
            masks.append(edit)
            continue
        if isinstance(site, MidSite):
            moved: list[Tensor] = []
            actions.append((site.norm, lambda x, e=edit, m=moved: _mid_before(e, x, m)))
            added: list[Tensor] = []
            if site.branch and isinstance(site.branch.view, ScaleView | None):
                # read after what is done to it
                branches.append((site.branch, partial(_branch, site.branch.view, added)))
            completed.append((site.block, lambda x, m=moved, a=added: _mid_after(x, m, a)))
            continue
        actions.append((site, lambda x, e=edit: _edited(e, x)))
    with _hooked(model, [*completed, *actions, *branches, *readers]), ExitStack() as stack:
        for edit in masks:
            module = model.get_submodule(edit.point.site.module)
            handle = module.register_forward_pre_hook(partial(_masked, edit), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _masked(edit: PlainEdit, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """An attention module's arguments with a number added to its mask, minus infinity mostly."""
    called = inspect.signature(module.forward).bind_partial(*args, **kwargs)
    x = called.arguments["hidden_states"]
    rows, length = x.shape[:2]
    mask, lowest = called.arguments.get("attention_mask"), torch.finfo(x.dtype).min
    if mask is None:  # sdpa is told by a flag alone
        seen = called.arguments["key_value_states"] if edit.point.keys else x
        mask = torch.ones(length, seen.shape[1], dtype=torch.bool, device=x.device)[None, None]
        mask = mask.tril() if edit.point.space == "text" and not edit.point.keys else mask
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill(~mask, lowest)
    n_heads = edit.point.sizes[edit.point.axes.index("head")]
    mask = mask.expand(rows, n_heads, length, mask.shape[-1]).clone()
    added = edit.values[0].item() if edit.values else -torch.inf
    for _, (row, query) in edit.cells_of(x.shape):
        for key_row, key in edit.keys:
            if key_row == row:
                mask[row, edit.heads or slice(None), query, key] += added
    called.arguments["attention_mask"] = mask
    return called.args, called.kwargs


def with_patterns_as_z(edits: Sequence[PlainEdit], points: Any) -> list[PlainEdit]:
    """Patterns that are zeroed or scaled as z that is, before what else is done to z.

    What a query mixes is linear in its pattern.
    """
    found, rest = [], []
    for edit in edits:
        if isinstance(edit.point.site, AttentionSite) and edit.kind != "block":
            assert edit.kind == "scale" or not any(v.any() for v in edit.values)
            name = edit.point.name.replace("hook_pattern", "hook_z")
            found.append(replace(edit, point=points[name]))
        else:
            rest.append(edit)
    return [*found, *rest]


@contextmanager
def _hooked(model: nn.Module, actions: Sequence[tuple[Any, Any]]):
    """One hook for each side of each module, in front of those that transformers has there."""
    sides: dict[tuple[str, bool], list] = {}
    for site, act in actions:
        side = sides.setdefault((site.module, isinstance(site, InputSite)), [])
        side.append((site, act))
    with ExitStack() as stack:
        for (path, before), mine in sides.items():
            module = model.get_submodule(path)
            if before:
                handle = module.register_forward_pre_hook(
                    lambda m, args, kwargs, mine=mine: _on_input(mine, args, kwargs),
                    prepend=True, with_kwargs=True,
                )  # fmt: skip
            else:
                handle = module.register_forward_hook(
                    lambda m, args, output, mine=mine: _on_output(mine, output), prepend=True
                )
            stack.callback(handle.remove)
        yield


def _on_input(actions: Sequence[tuple[InputSite, Any]], args: tuple, kwargs: dict):
    args = list(args)
    for site, act in actions:
        given = args[site.index] if len(args) > site.index else kwargs.get(site.keyword)
        new = None if given is None else act(given)
        if new is not None and len(args) > site.index:
            args[site.index] = new
        elif new is not None:
            kwargs = {**kwargs, site.keyword: new}
    return tuple(args), kwargs


def _on_output(actions: Sequence[tuple[OutputSite, Any]], output: Any) -> Any:
    for site, act in actions:
        output = _put(output, site.path, act)
    return output


def _put(output: Any, path: tuple, act: Any) -> Any:
    """The output with the tensor at a path changed."""
    if path:
        inner = _put(output[path[0]], path[1:], act)
        if isinstance(output, tuple):
            return tuple(inner if i == path[0] % len(output) else x for i, x in enumerate(output))
        output[path[0]] = inner
        return output
    if isinstance(output, Tensor):
        new = act(output)
        return output if new is None else new
    new = act(output[0])
    return output if new is None else (new, *output[1:])


# ---------------------------------------------------------------------- writes


def _branch(view: ScaleView | None, added: list[Tensor], x: Tensor) -> None:
    """Takes note of what the block will add."""
    added[:] = [x if view is None else view.factor.to(x) * x]


def _mid_before(edit: PlainEdit, x: Tensor, moved: list[Tensor]) -> Tensor:
    new = _edited(edit, x, edit.point.site.norm)
    moved[:] = [new - x, new]
    return new


def _mid_after(x: Tensor, moved: list[Tensor], added: list[Tensor]) -> Tensor:
    """What the block gives: the new stream and what it adds to it, in the block's own rounding."""
    if added:
        return (moved[1] + added[0].view_as(moved[1])).view_as(x)
    return x + moved[0].view_as(x)


def _shown(site: Any, x: Tensor) -> Tensor:
    """A module's tensor as the point shows it."""
    return x.clone() if site.view is None else site.view.split(x, 1).clone()


def _edited(edit: PlainEdit, x: Tensor, site: Any = None) -> Tensor:
    """A module's tensor with some cells of its point changed."""
    site = site or edit.point.site
    scaled = isinstance(site.view, ScaleView)
    view = None if scaled else site.view
    numbers = torch.arange(x.numel(), device=x.device).reshape(x.shape)
    where = numbers if view is None else view.split(numbers, 1)  # [row, pos, (head,) feature]
    flat = x.clone().flatten()
    factor = site.view.factor.to(x) if scaled else None

    def read(at: Tensor) -> Tensor:
        held = x.flatten()[at]
        return held * factor if scaled else held

    for i, (row, position) in edit.cells_of(where.shape):
        at = where[row, position]
        if edit.heads is not None:
            at = at[edit.heads]
        held = read(at)
        if edit.kind == "mean":
            pool = [where[r, p] for r, p in edit.pools[i]]
            pool = [a if edit.heads is None else a[edit.heads] for a in pool]
            value = torch.stack([read(a).float() for a in pool]).mean(0)
        else:
            value = edit.values[i].to(x.device)
        new = _new(edit.kind, held, value)
        if scaled:
            new = torch.where((new == held) | (factor == 0), flat[at], new / factor)
        flat[at] = new.to(flat.dtype)
    return flat.reshape(x.shape)


def _new(kind: str, held: Tensor, value: Tensor) -> Tensor:
    """What stands in a cell, `[(heads,) features]`, after a change of a kind."""
    if kind == "add":
        return held + value.to(held.dtype)
    if kind == "scale":
        return held * value.to(held.dtype)
    if kind == "clamp":
        return held.maximum(value[0].to(held.dtype)).minimum(value[1].to(held.dtype))
    if kind in ("remove", "project"):
        # the nearest sum of the directions, by least squares
        columns, wanted = value.double().T, held.double().reshape(-1, held.shape[-1]).T
        inside = (columns @ torch.linalg.lstsq(columns, wanted).solution).T.reshape(held.shape)
        return (inside if kind == "project" else held.double() - inside).to(held.dtype)
    return value.to(held.dtype).expand_as(held)
