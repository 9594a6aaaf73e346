"""Attention to a picture against what a generic prompt about it draws.

    A_rel[patch] = A(question)[patch] / A(generic)[patch]          (arXiv 2502.17422)

both normalised within the picture first, so that what a picture draws anyway (borders, sinks)
cancels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vlm_lens.attention.parts import AttentionError
from vlm_lens.scores.scores import Scores


def relative_attention(question: Scores, generic: Scores) -> Scores:
    """Attention to pictures, divided by that of a generic prompt with the same pictures.

    Args:
        question: `vlm.attention(...)` of the prompt that asks something.
        generic: The same of a prompt that asks nothing in particular ("Describe the picture.").

    Returns:
        Scores at the pictures' positions of `question`; 1 where both look alike.

    Raises:
        AttentionError: The two do not hold the same pictures, blocks and heads.
    """
    parts = [_of_pictures(s) for s in (question, generic)]
    (found, kinds), (other, other_kinds) = parts
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
        a, b = (v[..., mine] / v[..., mine].sum(-1, keepdims=True) for v in (ours, theirs))
        ratio[..., mine] = np.divide(a, b, out=np.zeros_like(a), where=b > 0)
    values = found.values.transpose(*axes, "position").copy(data=ratio)
    return replace(found, values=values, name="relative attention")


def _of_pictures(found: Scores) -> tuple[Scores, list[str]]:
    kinds = [p.kind for p in found.places()]
    keep = [i for i, k in enumerate(kinds) if k.startswith("image")]
    if not keep:
        raise AttentionError("These scores have no position of a picture.")
    kept = replace(found, values=found.values.isel(position=keep))
    return kept, [kinds[i] for i in keep]
