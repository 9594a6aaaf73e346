"""Attention to a picture against what a generic prompt about it draws.

    A_rel[patch] = A(question)[patch] / A(generic)[patch]          (arXiv 2502.17422)

both normalised within the picture first, so that what a picture draws anyway (borders, sinks)
cancels. A millionth is added to both shares, so that patches that neither looks at stay at 1.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vlm_lens.attention.parts import AttentionError
from vlm_lens.scores.scores import Scores

_FLOOR = 1e-6


def relative_attention(question: Scores, generic: Scores) -> Scores:
    """Attention to pictures, divided by that of a generic prompt with the same pictures.

    Args:
        question: `vlm.attention(...)` of the prompt that asks something.
        generic: The same of a prompt that asks nothing in particular ("Describe the picture.").

    Returns:
        Scores at the pictures' positions of `question`; 1 where both look alike.

    Raises:
        ScoresError: One of them has no position of a picture.
        AttentionError: The two do not hold the same pictures, blocks and heads.
    """
    found, other = (s.of_kind("image") for s in (question, generic))
    kinds, other_kinds = ([p.kind for p in s.places()] for s in (found, other))
    if kinds != other_kinds:
        raise AttentionError(
            "The two prompts do not show the same pictures at the same size: "
            f"{len(kinds)} and {len(other_kinds)} positions of pictures."
        )
    axes = [a for a in found.axes if a != "position"]
    if axes != [a for a in other.axes if a != "position"] or any(
        found.values[a].to_numpy().tolist() != other.values[a].to_numpy().tolist()
        for a in axes if a != "query"
    ):  # fmt: skip
        raise AttentionError("The two are of other blocks, heads or numbers of queries.")
    ours, theirs = (
        np.moveaxis(s.values.to_numpy(), s.axes.index("position"), -1) for s in (found, other)
    )
    if ours.shape != theirs.shape:
        raise AttentionError("The two have other numbers of queries.")
    ratio = np.ones_like(ours)
    for kind in dict.fromkeys(kinds):
        mine = [i for i, k in enumerate(kinds) if k == kind]
        a, b = (_share(v[..., mine]) for v in (ours, theirs))
        ratio[..., mine] = (a + _FLOOR) / (b + _FLOOR)
    values = found.values.transpose(*axes, "position").copy(data=ratio)
    return replace(found, values=values, name="relative attention")


def _share(values: np.ndarray) -> np.ndarray:
    total = values.sum(-1, keepdims=True)
    return np.divide(values, total, out=np.zeros_like(values), where=total > 0)
