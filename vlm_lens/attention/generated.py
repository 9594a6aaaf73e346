"""Where each new token looks, read while the answer is generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from vlm_lens.attention.parts import AttentionError, part_of
from vlm_lens.scores.scores import Scores, scores
from vlm_lens.tokens import string_token

if TYPE_CHECKING:
    from vlm_lens.hooked.hooked_model import HookedModel, Interventions, Pictures, Promptable


def generated_attention(
    vlm: HookedModel,
    prompt: Promptable,
    images: Pictures = None,
    *,
    max_new_tokens: int | None = None,
    layers: Sequence[int] | int | None = None,
    heads: Sequence[int] | int | None = None,
    part: str = "language",
    interventions: Interventions = (),
    **options: Any,
) -> Scores:
    """Attention to the prompt from where each new token is predicted.

    Rows sum to less than 1 from the second new token on: the rest falls on new tokens.

    Args:
        vlm: The model.
        prompt: One prompt: a Prompt of one row, text, or a processor's output.
        images: Pictures, where `prompt` is text.
        max_new_tokens: How many tokens, at the most.
        layers: Blocks, 0-based; all by default.
        heads: Heads, 0-based; all by default.
        part: `"language"`, or `"cross"` for blocks that attend from text to pictures.
        interventions: What to change.
        **options: Passed to `vlm.generate`.

    Returns:
        Scores by `layer`, `head`, `token` (the number of the new token, and its text) and
        `position` (the prompt's keys), over the picture with a slider for tokens. `about` has the
        answer.

    Raises:
        AttentionError: Another part, a block or head that there is not, or a batch.
    """
    which = part_of(vlm, part)
    if which.queries != "text":
        raise AttentionError("New tokens look at text and pictures: part='language' or 'cross'.")
    chosen, picked = which.chosen(layers), which.chosen_heads(heads)
    prompt = vlm.prompts.left_padded(vlm.as_prompt(prompt, images))
    if len(prompt) != 1:
        raise AttentionError(f"This is a batch of {len(prompt)} rows: generate from one prompt.")
    names = [which.point(n, "attn.hook_pattern") for n in chosen]
    made = vlm.generate(
        prompt, max_new_tokens=max_new_tokens, names_filter=names, interventions=interventions,
        **options,
    )  # fmt: skip
    patterns = [made.cache[name][0].float().cpu()[picked] for name in names]
    keys = which.keys_of(prompt.layout, prompt.layout.row, patterns[0].shape[-1])
    values = torch.stack([p[..., [k for _, k in keys]] for p in patterns])
    ids = made.tokens[0].tolist()
    strings = [string_token(vlm.tokenizer, i) if vlm.tokenizer else str(i) for i in ids]
    return scores(
        values.numpy(),
        {"layer": chosen, "head": picked, "token": [f"{i} {s!r}" for i, s in enumerate(strings)],
         "position": [p for _, p in keys]},
        None if which.keys == "text" else [r for r, _ in keys],
        name="attention", layout=prompt.layout,
        pictures=prompt.images[0] if prompt.images else (), space=which.keys,
        about={"model": vlm.name, "part": part, "answer": made.text[0] if made.text else ids},
    )  # fmt: skip
