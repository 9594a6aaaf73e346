"""Hidden states of many prompts at every layer, averaged over positions of a kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.errors import VectorError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.layout.positions import Position
from vlm_lens.points.point import Point
from vlm_lens.reading.many import batches


def points_by_layer(vlm: HookedModel, points: str) -> list[Point]:
    """The points of a glob, one a layer.

    Raises:
        VectorError: Points of several kinds, or of scores or patterns.
    """
    table = vlm.architecture.points
    found = [table[name] for name in table.match(points)]
    if len({point.kind for point in found}) > 1 or found[0].on_demand:
        raise VectorError(
            f"{points!r} selects {', '.join(sorted({p.kind for p in found}))}: give one kind of "
            "point that holds activations, 'blocks.*.hook_resid_post'."
        )
    return found


@torch.no_grad()
def pooled_states(
    vlm: HookedModel,
    prompts: Sequence[Any],
    at: Mapping[str, Position],
    *,
    points: str = "blocks.*.hook_resid_post",
    batch_size: int = 16,
) -> dict[str, Float[Tensor, "prompt layer d"]]:
    """For each named position, the mean activation over its places in each prompt.

    Args:
        vlm: The model.
        prompts: Texts, RawPrompts or Prompts.
        at: Name -> position: `{"image": Images(), "last": Last()}`.
        points: Which point of each block; heads are put side by side.
        batch_size: Prompts that run together at the most.

    Raises:
        VectorError: No prompts, points of several kinds, or a prompt without such a place.
        PositionError: Likewise.
    """
    listed = list(prompts)
    if not listed:
        raise VectorError("Give at least one prompt.")
    if any(not isinstance(p, str) and not hasattr(p, "text") for p in listed):
        listed = [vlm.as_prompt(p) for p in listed]
    found = points_by_layer(vlm, points)
    space = found[0].space
    states: dict[str, dict[int, Tensor]] = {name: {} for name in at}
    with vlm.reusing_pictures():
        for batch in batches(vlm, listed, batch_size):
            prompt = vlm.as_prompt(batch.prompts)
            _, cache = vlm.run_with_cache(
                prompt, names_filter=[p.name for p in found], last_logits=1
            )
            for number, layout in zip(batch.rows, prompt.layouts, strict=True):
                for name, position in at.items():
                    pairs = position.resolve(layout, space)
                    if not pairs:
                        raise VectorError(f"Prompt {number} has no place {position}.")
                    rows, places = torch.tensor(pairs).T
                    mean = [
                        cache[p.name][rows, places].flatten(1).double().mean(0).cpu() for p in found
                    ]
                    states[name][number] = torch.stack(mean).float()
    return {
        name: torch.stack([by_number[i] for i in sorted(by_number)])
        for name, by_number in states.items()
    }


__all__ = ["points_by_layer", "pooled_states"]
