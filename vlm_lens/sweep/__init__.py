"""Many variants of one run, for little more than the price of one."""

from __future__ import annotations

from vlm_lens.sweep.measures import (
    Capture,
    Custom,
    GeneratedTokens,
    Logits,
    Measure,
    TokenScores,
    Top1,
)
from vlm_lens.sweep.result import SweepResult
from vlm_lens.sweep.run import sweep
from vlm_lens.sweep.variants import Grid, Variant

__all__ = [
    "Capture",
    "Custom",
    "GeneratedTokens",
    "Grid",
    "Logits",
    "Measure",
    "SweepResult",
    "TokenScores",
    "Top1",
    "Variant",
    "sweep",
]
