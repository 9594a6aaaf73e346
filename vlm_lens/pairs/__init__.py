"""Pairs: two prompts that differ in one thing, and what carries the difference."""

from __future__ import annotations

from vlm_lens.pairs.grid import grid_pairs
from vlm_lens.pairs.masking import masked_pair
from vlm_lens.pairs.pair import Pair, PairError
from vlm_lens.pairs.pairs import Pairs
from vlm_lens.pairs.rows import constraint_pairs, task_pairs
from vlm_lens.pairs.scores import PairScores
from vlm_lens.pairs.words import replaced_pair
from vlm_lens.patching import Each, Receiver

__all__ = [
    "Each",
    "Pair",
    "PairError",
    "PairScores",
    "Pairs",
    "Receiver",
    "constraint_pairs",
    "grid_pairs",
    "masked_pair",
    "replaced_pair",
    "task_pairs",
]
