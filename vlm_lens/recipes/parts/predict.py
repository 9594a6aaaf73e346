"""The next token of many prompts under many interventions, each prompt prepared once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from vlm_lens.interventions.base import compose
from vlm_lens.model.hooked_vlm import HookedVLM

__all__ = ["first_tokens"]


def first_tokens(
    vlm: HookedVLM,
    prompts: Sequence[Any],
    interventions: Sequence[Any] = ((),),
    *,
    batch_size: int = 32,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Int[Tensor, "interventions prompts"]:
    """The most likely next token of each prompt: what greedy generation of one token gives.

    Each batch of prompts is run once as it is, and of every intervention only what it can change is
    computed; see `HookedVLM.sweep`.

    Args:
        vlm: A HookedVLM.
        prompts: Texts or RawPrompts; they run in left-padded batches.
        interventions: One entry a run of all prompts; `()` changes nothing.
        batch_size: How many prompts run together.
        progress: What the batches are passed through, for a progress bar.
    """
    runs = [compose(one) for one in interventions]
    columns = []
    for start in progress(range(0, len(prompts), batch_size)):
        prompt = vlm.as_prompt(list(prompts[start : start + batch_size]))
        swept = vlm.sweep(prompt, runs, progress=False)
        columns.append(swept.stack("token_id").reshape(len(runs), len(prompt)))
    return torch.cat(columns, dim=1)
