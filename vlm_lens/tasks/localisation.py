"""How well scores of patches point at the patches that an answer is known to depend on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_lens.tasks.rows import TaskError

__all__ = ["Localisation", "localise"]


@dataclass(frozen=True)
class Localisation:
    """How well some scores point at the true patches.

    Attributes:
        mass: The share of the scores' absolute values that lies on the true patches, 0 to 1.
        rank: How many of the other patches have a larger absolute value than the best true one;
            0 is right.
        chance: The share of patches that are true: the mass of scores that are all the same.
    """

    mass: float
    rank: int
    chance: float

    @property
    def hit(self) -> bool:
        """Whether no other patch has a larger score than the best true one."""
        return self.rank == 0


def localise(scores: Any, positions: Sequence[int], true: Collection[int]) -> Localisation:
    """Score scores of patches, for example attention or attribution, against the truth.

    Args:
        scores: One number a position, `[len(positions)]`: a sequence, an array or a tensor. Larger
            absolute values mean more.
        positions: Where the patches stand, `layout.image[0].positions`.
        true: Those on which the answer depends, `row.patches(layout)`.

    Returns:
        Mass, rank and chance.

    Raises:
        TaskError: Scores and positions do not fit, or no score is different from zero.
    """
    if hasattr(scores, "detach"):  # a tensor, on a GPU perhaps; this room does without torch
        scores = scores.detach().cpu().double()
    values = np.abs(np.asarray(scores, dtype=np.float64))
    if values.shape != (len(positions),):
        raise TaskError(
            f"scores has shape {list(values.shape)}; give one for each of {len(positions)} patches"
        )
    if not np.isfinite(values).all():
        raise TaskError("some scores are not numbers or not finite")
    there = np.isin(positions, sorted(true))
    if there.sum() != len(set(true)) or not there.any():
        raise TaskError(f"the true patches {sorted(true)} are not all among the positions")
    if not values.any():
        raise TaskError("all scores are 0: they point nowhere")
    return Localisation(
        float(values[there].sum() / values.sum()),
        int((values[~there] > values[there].max()).sum()),
        float(there.mean()),
    )
