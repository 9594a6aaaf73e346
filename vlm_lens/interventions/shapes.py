"""The shapes that a value may have, and how it meets the places that it is written to.

A place is one (row, position) of an activation; it holds `[features]`, or `[heads, features]` at
points that have heads. A value is written as one of

    a number                             the same everywhere
    [features]                           the same at every place (and for every head)
    [heads, features]                    the same at every place, at points with heads
    [positions, (heads,) features]       one for each position, the same in every prompt
    [places, (heads,) features]          one for each place of all prompts, row by row
    [prompts, positions, (heads,) features]

An axis of heads holds every head of the point, or the heads that are chosen, or 1 for all of them;
an axis of features may be 1. How many axes a value has says which form it is, so nothing is guessed
from sizes: at points with heads, two axes are `[heads, features]`. Where many
prompts run in batches of like length, each batch takes what is meant for its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_lens.errors import InterventionError
from vlm_lens.interventions.base import Place
from vlm_lens.points.point import Point


def shaped(value: Tensor, place: Place) -> Tensor:
    """A value as the kernel wants it: `[places or 1, (heads or 1,) features or 1]`.

    Raises:
        InterventionError: A shape that fits none of the forms.
    """
    inner = inner_shape(place.point)
    if value.dim() == 0:
        return value.reshape((1,) * (len(inner) + 1))
    if value.dim() == 1 and len(inner) == 2:
        value = value.unsqueeze(0)
    n_outer = value.dim() - len(inner)
    if n_outer < 0 or not _fits(value, inner, place):
        raise _refused(value, inner, place)
    if place.heads is not None and value.shape[-2] == inner[0]:
        value = value[..., list(place.heads), :]
    outer, own = tuple(value.shape[:n_outer]), value.shape[n_outer:]
    n_places, n_prompts = len(place.positions), place.n_prompts
    per_prompt = place.counts[0] if len(set(place.counts)) == 1 else None
    if outer in ((), (1,)):
        return value.reshape(1, *own)
    if per_prompt and outer in ((n_prompts * per_prompt,), (n_prompts, per_prompt)):
        each = value.reshape(n_prompts, per_prompt, *own)
        return each[list(place.prompts)].reshape(n_places, *own)
    if outer == (per_prompt,):
        return value.repeat(len(place.counts), *[1] * len(own))
    if outer == (n_places,) and n_prompts == len(place.counts):
        order = sorted(range(n_prompts), key=lambda row: place.prompts[row])
        parts = value.split([place.counts[row] for row in order])
        return torch.cat([parts[number] for number in place.prompts])
    raise _refused(value, inner, place)


def inner_shape(point: Point) -> tuple[int | None, ...]:
    """What one place holds: `(d_model,)`, `(n_heads, d_head)`, `(n_heads, keys unknown)`."""
    if "query" in point.axes:
        return (point.sizes[point.axes.index("head")], None)
    return point.sizes[2:]


def _fits(value: Tensor, inner: tuple[int | None, ...], place: Place) -> bool:
    *heads, width = value.shape[value.dim() - len(inner) :]
    if inner[-1] is not None and width not in (1, inner[-1]):
        return False
    chosen = inner[0] if place.heads is None else len(place.heads)
    return not heads or heads[0] in (1, chosen, inner[0])


def _refused(value: Tensor, inner: tuple[int | None, ...], place: Place) -> InterventionError:
    sizes = inner if place.heads is None else (len(place.heads), *inner[1:])
    form = ", ".join("keys" if size is None else str(size) for size in sizes)
    many = sorted(set(place.counts))
    forms = [f"a number, [{form}]"]
    forms += [f"[{n}, {form}] for the {n} positions" for n in many if len(many) == 1 and n > 1]
    if place.n_prompts > 1 and (len(many) == 1 or place.n_prompts == len(place.counts)):
        n_all = place.n_prompts * many[0] if len(many) == 1 else len(place.positions)
        forms.append(f"[{n_all}, {form}] for all places of the prompts")
    return InterventionError(
        f"A value of shape {list(value.shape)} does not fit {place.point.name}: it takes "
        + ", or ".join(forms)
        + "."
    )
