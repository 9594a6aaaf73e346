"""The plan of toy-induction: what its coordinates mean, and which head is which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.zoo.induction.codes import WIDTH, code_book

__all__ = [
    "ANSWER", "BLOCKS", "BOS", "COLON", "CONST", "DEFAULT", "D_HEAD", "D_MODEL", "EPSILON", "GAIN",
    "HEADS", "IMAGE", "INDUCTION", "PREVIOUS", "QUESTION", "SCALE", "SLOTS", "read_slot",
]  # fmt: skip

BLOCKS, HEADS, D_HEAD = 3, 3, 96
D_MODEL = HEADS * D_HEAD

# (block, head) of the four heads that do something
QUESTION = (0, 1)
PREVIOUS = (1, 0)
INDUCTION = (2, 0)
ANSWER = (2, 2)

# Each slot holds the code of a token, or nothing.
SLOTS: dict[str, slice] = {
    name: slice(i * WIDTH, (i + 1) * WIDTH)
    for i, name in enumerate(("TOKEN", "SELF", "NAME", "KEY", "PREV", "OUT"))
}
# Single coordinates after the slots.
CONST, BOS, COLON, IMAGE = (len(SLOTS) * WIDTH + i for i in range(4))

# Every norm divides by the root of its epsilon, beside which the mean square of the stream is
# nothing, and multiplies by the same number again: it changes no value by more than rounding does.
GAIN = 1024.0
EPSILON = GAIN**2
# The logit of a token whose code stands in OUT, and that of `</s>` where OUT is empty.
SCALE = 64.0
DEFAULT = 0.3 * SCALE


def read_slot(
    vlm: HookedModel, residual: Tensor, slot: str, *, threshold: float = 0.45
) -> list[list[tuple[str, float]]]:
    """What a slot of the residual stream holds, as tokens.

    Args:
        vlm: toy-induction, loaded.
        residual: `[..., d_model]`, a residual stream of it.
        slot: One of `SLOTS`.
        threshold: How much of a token's code must be there, of 1. A slot with two codes holds up
            to 0.42 of any other.

    Returns:
        For each position, in the order of `residual.reshape(-1, d_model)`, the tokens whose code
        is there and how much of it, the largest first; nothing where the slot is empty.
    """
    tokens = token_list(vlm.tokenizer)
    amounts = residual.reshape(-1, residual.shape[-1])[:, SLOTS[slot]].float().cpu()
    amounts = amounts @ code_book(tokens).T
    return [
        sorted(
            ((tokens[i], float(row[i])) for i in (row > threshold).nonzero().flatten().tolist()),
            key=lambda pair: -pair[1],
        )
        for row in amounts
    ]


def token_list(tokenizer: Any) -> Sequence[str]:
    """All tokens of a tokenizer, by id."""
    return tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
