"""Tokens generated after replayed prompts, each row from its own cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_lens.engine.baseline import Baseline
from vlm_lens.engine.replay import Replayed
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.sweep.measures import greedy


@torch.no_grad()
def continue_greedily(
    vlm: HookedModel, prompt: Prompt, baseline: Baseline, replayed: Replayed, n_new: int
) -> Tensor:
    """Greedy tokens of each variant, `[variants, rows, n_new]` or fewer if all rows end."""
    logits = replayed.logits[:, :, -1]
    shape, model = logits.shape[:2], vlm.hf_model
    new = [greedy(logits).flatten()]
    mask = prompt.inputs.get("attention_mask")
    if mask is not None:
        mask = mask.repeat(shape[0], 1)
    ends = _end_tokens(model)
    following = baseline.next_positions
    if following is None:
        following = torch.full((shape[1],), baseline.length, device=logits.device)
    following = following.to(new[0]).repeat(shape[0])
    for step in range(1, n_new):
        if ends and torch.isin(torch.stack(new), torch.tensor(ends).to(new[0])).any(0).all():
            break
        options: dict[str, Any] = {}
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            options["attention_mask"] = mask
        out = model(
            input_ids=new[-1][:, None], past_key_values=replayed.cache, use_cache=True,
            position_ids=(following + step - 1)[:, None], return_dict=True, **options,
        )  # fmt: skip
        new.append(greedy(out.logits[:, -1]))
    tokens = _ended(torch.stack(new, -1), ends, _pad(model, vlm.tokenizer))
    return tokens.unflatten(0, shape)


def _end_tokens(model: Any) -> list[int]:
    ends = model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _pad(model: Any, tokenizer: Any) -> int:
    pad = model.generation_config.pad_token_id
    return pad if pad is not None else getattr(tokenizer, "pad_token_id", None) or 0


def _ended(tokens: Tensor, ends: Sequence[int], pad: int) -> Tensor:
    """Tokens after a row's end replaced by padding, as generate gives them."""
    if not ends:
        return tokens
    ended = torch.isin(tokens, torch.tensor(ends).to(tokens)).long().cumsum(-1)
    after = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], -1) > 0
    return tokens.masked_fill(after, pad)
