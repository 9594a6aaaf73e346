"""Lenses: what a hidden state says, in words."""

from __future__ import annotations

from vlm_lens.lenses.base import Lens, LensError, Reading, States
from vlm_lens.lenses.logit_lens import LogitLens, VocabularyLens
from vlm_lens.lenses.result import LensResult, LensRow
from vlm_lens.lenses.tuned import TunedLens

__all__ = [
    "Lens",
    "LensError",
    "LensResult",
    "LensRow",
    "LogitLens",
    "Reading",
    "States",
    "TunedLens",
    "VocabularyLens",
]
