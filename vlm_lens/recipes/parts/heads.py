"""Attention heads of a task: their mean outputs, put in place, or what they write, summed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.interventions import ActivationPatch
from vlm_lens.layout.positions import Last
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.reading.vectors import TaskVector
from vlm_lens.serial import FrozenTensor

__all__ = ["Head", "patch_heads", "mean_head_outputs", "random_heads", "function_vector"]

Head = tuple[int, int]  # 0-based block, head
_Z = "blocks.*.attn.hook_z"


def mean_head_outputs(
    vlm: HookedVLM, prompts: Sequence[Any], *, batch_size: int = 32
) -> TaskVector:
    """What every head gives at the last position, before the output projection, mean over prompts.

    Args:
        vlm: A HookedVLM.
        prompts: Few-shot prompts with an open query.
        batch_size: How many run together.

    Returns:
        A vector of shape `[layers, heads, d_head]`.
    """
    return TaskVector.read(vlm, list(prompts), at=Last(), points=_Z, batch_size=batch_size)


def patch_heads(means: TaskVector, heads: Iterable[Head]) -> list[ActivationPatch]:
    """The chosen heads' outputs at the last position replaced by their means, each in its block."""
    by_layer: dict[int, list[int]] = {}
    for layer, head in sorted(heads):
        by_layer.setdefault(layer, []).append(head)
    return [
        ActivationPatch(f"blocks.{layer}.attn.hook_z", at=Last(), value=means, heads=tuple(mine))
        for layer, mine in by_layer.items()
    ]


def function_vector(
    vlm: HookedVLM, means: TaskVector, heads: Iterable[Head]
) -> Float[Tensor, " d_model"]:
    """What the chosen heads' means add to the residual stream, summed.

    The model's own output projections are used: in one run all heads' outputs are the chosen means
    or nothing, in another nothing, and the attention outputs of all blocks are subtracted. So a
    bias falls out, and no weight need be found.

    Args:
        vlm: A HookedVLM.
        means: What `mean_head_outputs` gave.
        heads: The chosen heads.
    """
    kept = torch.zeros_like(means.values)
    for layer, head in heads:
        kept[layer, head] = means.values[layer, head]
    outputs = []
    for values in (kept, torch.zeros_like(kept)):
        patch = ActivationPatch(_Z, at=Last(), value=replace(means, data=FrozenTensor(values)))
        _, cache = vlm.run_with_cache(
            "A:", names_filter="blocks.*.hook_attn_out", positions=Last(), device="cpu",
            interventions=patch,
        )  # fmt: skip
        outputs.append(cache.stack("attn_out")[:, 0, 0].double())
    return (outputs[0] - outputs[1]).sum(0).to(means.values.dtype)


def random_heads(
    vlm: HookedVLM, chosen: Iterable[Head], *, seed: int, by_block: bool = False
) -> tuple[Head, ...]:
    """As many other heads as were chosen, drawn by chance: a control.

    Args:
        vlm: A HookedVLM.
        chosen: The chosen heads; none of them is drawn.
        seed: The seed of the draw.
        by_block: Whether each block has as many as were chosen in it. Where it has too few others,
            the rest comes from other blocks.

    Returns:
        Heads in order; fewer where more than half of all were chosen.
    """
    chosen = tuple(chosen)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(vlm.cfg.n_layers * vlm.cfg.n_heads, generator=generator).tolist()
    heads = (divmod(i, vlm.cfg.n_heads) for i in order)
    others = [head for head in heads if head not in chosen]
    drawn: list[Head] = []
    if by_block:
        for block, n in Counter(block for block, _ in chosen).items():
            drawn += [head for head in others if head[0] == block][:n]
    drawn += [head for head in others if head not in drawn][: len(chosen) - len(drawn)]
    return tuple(sorted(drawn))
