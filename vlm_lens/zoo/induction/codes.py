"""One vector a token, far from all others, by a formula.

The vectors are chirps (Alltop 1980, "Complex sequences with low periodic correlations", in the
quadratic form): for a prime p, the vector of (a, b) has the p complex entries
`exp(2 pi i (a n^2 + b n) / p) / sqrt(p)`, written here as p real parts and then p imaginary parts.
Each has length 1. Two with the same a are orthogonal; two with different a have an inner product of
at most 1 / sqrt(p), which is a Gauss sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vlm_lens.tasks.palette import COLORS, cell_names

__all__ = ["CELLS", "PRIME", "WIDTH", "WORDS", "bare", "code_book", "code_order"]

PRIME = 23
WIDTH = 2 * PRIME
CELLS = cell_names(4)
WORDS = (*COLORS, "gray")
# One family (one a) each, so that within a picture all names, and all words, are orthogonal.
_NAMES = ("<image>", *CELLS, "<s>", "</s>", "<pad>", "<unk>", "Q", "A")


def code_order(tokens: Sequence[str]) -> list[int]:
    """Which vector each token has, counted over the families one after the other.

    Args:
        tokens: All tokens, by id.

    Returns:
        For each token the number `a * PRIME + b`.
    """
    first = [*_NAMES, *WORDS]
    rest = sorted(set(tokens) - set(first), key=tokens.index)
    number = {token: i for i, token in enumerate([*first, *rest])}
    return [number[token] for token in tokens]


def bare(tokens: Sequence[str]) -> list[int]:
    """For each token the id of the same word without its leading space.

    Args:
        tokens: All tokens, by id.
    """
    ids = {token: i for i, token in enumerate(tokens)}
    return [ids.get(token.removeprefix(" ") or token, i) for i, token in enumerate(tokens)]


def code_book(tokens: Sequence[str]) -> Tensor:
    """The vectors of all tokens.

    Args:
        tokens: All tokens, by id; at the most `PRIME ** 2`.

    Returns:
        `[tokens, WIDTH]`, rows of length 1.

    Raises:
        ValueError: There are more tokens than vectors.
    """
    if len(tokens) > PRIME**2:
        raise ValueError(f"{len(tokens)} tokens, but only {PRIME**2} vectors: take a larger prime")
    number = torch.tensor(code_order(tokens))
    a, b = number // PRIME, number % PRIME
    n = torch.arange(PRIME)
    # whole turns are taken off while the numbers are whole, so that the angles are exact
    turns = (a[:, None] * n * n + b[:, None] * n) % PRIME
    angles = turns.double() * (2 * math.pi / PRIME)
    return torch.cat([angles.cos(), angles.sin()], -1).div(math.sqrt(PRIME)).float()
