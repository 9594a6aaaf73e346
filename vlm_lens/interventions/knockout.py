"""Attention knockout: queries that may not see some keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vlm_lens.interventions.base import Target
from vlm_lens.interventions.edges import AttentionEdges
from vlm_lens.layout.positions import Position
from vlm_lens.ops import BLOCK, WEIGH, Op
from vlm_lens.serial import savable


@savable
@dataclass(frozen=True)
class AttentionKnockout(AttentionEdges):
    """Hides keys from queries: minus infinity is added to the masked scores before softmax.

    Geva et al. 2023 (2304.14767). The model's own mask stays as it is (padding, sliding windows,
    pictures that are seen both ways), and the weights of the keys that are left sum to 1. Only the
    edges named are cut: what a key gave to other positions in earlier blocks still flows from
    there, so a window of blocks is the usual choice.

    Attributes:
        queries: Which positions look; `Last() + Generated()` for the last one and all new tokens.
        keys: Which positions of the same prompt (in the tower: picture) they do not see.
        layers: Which blocks; by default all that are read (a projector may read an earlier block
            of the tower than its last).
        heads: Which heads (of the queries); all by default.
        part: `"language"` (the text's own attention, in which pictures stand as tokens),
            `"vision"` (the tower) or `"cross"` (blocks that attend from text to a picture; keys
            are patches or whole pictures).
        renormalise: False for another experiment: the weights of the keys are set to zero after
            softmax, and those of the others stay as they are, so that rows sum to less than 1.
    """

    queries: Position
    keys: Position
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    part: str = "language"
    renormalise: bool = True

    def lower(self, target: Target) -> list[Op]:
        """One `block` op a block (without renormalising a `weigh` op), one more for new tokens.

        Raises:
            PointError: No such block or head, or no attention scores.
            PositionError: No such position in one of the prompts.
            InterventionError: No query comes after one of the keys.
        """
        if self.renormalise:
            return list(self.edges(target, "hook_attn_scores", BLOCK))
        return list(self.edges(target, "hook_pattern", WEIGH, times=torch.zeros(1, 1, 1)))
