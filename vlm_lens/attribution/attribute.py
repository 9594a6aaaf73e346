"""Attribution patching: gradient times difference, for every node at once.

```
effect of a node  ~  sum over its entries of  (a_other - a_base) * d(measure)/d(a)

denoise   base = corrupt run, other = clean run:   recovered share = effect / (clean - corrupt)
noise     base = clean run, other = corrupt run:   lost share     = -effect / (clean - corrupt)
```

A first-order estimate of what patching each node by itself would do, for two forwards and one
backward instead of a forward each (Nanda 2023; Syed et al. 2023, arXiv 2310.10348). `method="ig"`
takes the mean of the gradient along the line between the two inputs (Hanna et al. 2024, arXiv
2403.17806). `found.check(vlm)` patches the best nodes exactly and says how well both agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm_lens.attribution.between import Between, between
from vlm_lens.attribution.refusal import AttributionError
from vlm_lens.attribution.scores import Attribution, Request
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.integers import as_integer
from vlm_lens.layout.cells import Cell
from vlm_lens.layout.position_map import PositionMap, position_map
from vlm_lens.measures.base import Measure
from vlm_lens.patching.exact import SHARES, Direction
from vlm_lens.patching.parts import check_apart
from vlm_lens.patching.patch import At, Heads, Plan, plan_patches
from vlm_lens.points.point import Point
from vlm_lens.points.table import NamesFilter
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.scores.scores import scores

METHODS = {"gradient": "attribution patching", "ig": "attribution patching, integrated"}
STEPS = 5


def attribute(
    vlm: HookedModel,
    clean: Prompt,
    corrupt: Prompt,
    points: NamesFilter,
    *,
    measure: Measure,
    method: str = "gradient",
    steps: int = STEPS,
    at: At = None,
    heads: Heads = None,
    direction: Direction = "denoise",
    features: bool = False,
    positions: PositionMap | None = None,
) -> Attribution:
    """Estimates what patching every block, head and place by itself would do.

    Args:
        vlm: The model.
        clean: The clean prompt, of one row.
        corrupt: The corrupt one.
        points: A point, a glob or a list, of one kind: `"blocks.*.attn.hook_z"`.
        measure: A measure with a gradient, such as `LogitDiff(...)`.
        at: As for `vlm_lens.patching.patch`: a position, several, `"each"`, `Each(position)`.
        heads: `"each"`, numbers, or `None` for all together.
        method: `"gradient"` at the run that would be changed, or `"ig"`, its mean on the way.
        steps: Of `"ig"`.
        direction: `"denoise"` or `"noise"`; see `vlm_lens.patching`.
        features: Whether each feature (of `mlp.hook_post`: each neuron) is a node by itself.
        positions: Which position stands for which; found by default.

    Returns:
        Shares on the axes that exact patching has; with `features`, also by `feature`.

    Raises:
        VLMLensError: Something does not fit the model, the measure or the prompts.
    """
    if method not in METHODS:
        raise AttributionError(f"method is 'gradient' or 'ig', not {method!r}.")
    if direction not in SHARES:
        raise AttributionError(f"direction is 'denoise' or 'noise', not {direction!r}.")
    n_steps = as_integer(steps, "steps", AttributionError) if method == "ig" else None
    if n_steps is not None and n_steps < 1:
        raise AttributionError(f"steps is at least 1, not {steps}.")
    positions = positions or position_map(clean.layout, corrupt.layout)
    plan = plan_patches(vlm, positions, points, at=at, heads=heads)
    names = [name for window in plan.points for name in window]
    denoise = direction == "denoise"
    mapped = positions.flipped() if denoise else positions
    base, other = (corrupt, clean) if denoise else (clean, corrupt)
    found = between(
        vlm, base, other, names, measure, mapped, steps=n_steps, space=plan.space
    )  # fmt: skip
    ends = (found.other, found.value) if denoise else (found.value, found.other)
    check_apart(*ends)
    effect = _effects(vlm, plan, names, found, positions, swap=denoise, features=features)
    share = effect / (ends[0] - ends[1]) * (1 if denoise else -1)
    axes: dict[str, Any] = dict(plan.axes)
    if features:
        axes["feature"] = range(share.shape[-1])
    about = {
        "method": f"{METHODS[method]} ({direction})",
        "model": vlm.name,
        **plan.about,
        "measure": repr(measure),
        "clean": ends[0],
        "corrupt": ends[1],
    }
    if n_steps is not None:
        about["steps"] = n_steps
        if found.gap is not None:
            about["the line is off by"] = found.told()
    made = scores(
        share,
        axes,
        plan.rows if plan.space != "text" else None,
        name=SHARES[direction],
        layout=clean.layout,
        pictures=clean.images[0] if clean.images else (),
        space=plan.space,
        about=about,
    )
    asked = Request(clean, corrupt, plan, measure, positions, direction, features)
    return Attribution(**vars(made), asked=asked)


def _effects(
    vlm: HookedModel,
    plan: Plan,
    names: Sequence[str],
    found: Between,
    positions: PositionMap,
    *,
    swap: bool,
    features: bool,
) -> np.ndarray:
    """Effects on the axes of a plan, in float64."""
    cells = positions.cells(plan.space)
    pairs = [(b, a) if swap else (a, b) for a, b in cells.items()]
    index = {cell: i for i, cell in enumerate(cells)}
    rows: list[int] = []
    places: list[int] = []
    for place, at in enumerate(plan.places):
        mine = [index[c] for c in at.resolve(positions.clean, plan.space) if c in index]
        rows += mine
        places += [place] * len(mine)
    effects = []
    for name in names:
        product = _product(vlm.architecture.points[name], found, name, pairs, features)
        if plan.heads == (None,):  # all heads together, of points that have some
            product = product.sum(1) if product.dim() > 1 + features else product
            product = product[:, None]
        else:
            product = product[:, [head for chosen in plan.heads for head in chosen or ()]]
        summed = product.new_zeros(len(plan.places), *product.shape[1:])
        summed.index_add_(0, _indices(places, product), product[_indices(rows, product)])
        effects.append(summed.transpose(0, 1).cpu())
    array = torch.stack(effects).numpy()
    return array.reshape((*(len(c) for c in plan.axes.values()), *array.shape[3:]))


def _product(
    point: Point, found: Between, name: str, pairs: Sequence[tuple[Cell, Cell]], features: bool
) -> Tensor:
    """Gradient times difference, `[cell, (head,) (feature)]`."""
    here, there = zip(*pairs, strict=True)
    gradient, base = (_at(point, x[name], here) for x in (found.gradients, found.here))
    product = gradient.double() * (_at(point, found.there[name], there) - base).double()
    return product if features else product.sum(-1)


def _at(point: Point, x: Tensor, cells: Sequence[Cell]) -> Tensor:
    x = x.transpose(1, 2) if "query" in point.axes else x
    rows, positions = (torch.tensor(i, device=x.device) for i in zip(*cells, strict=True))
    return x[rows, positions]


def _indices(numbers: Sequence[int], beside: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=torch.long, device=beside.device)
