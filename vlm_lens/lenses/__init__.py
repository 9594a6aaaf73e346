"""Lenses: what a hidden state says, in words."""

from __future__ import annotations

from vlm_lens.lenses.bank import Bank, in_contexts
from vlm_lens.lenses.base import Lens, LensError, Reading, States
from vlm_lens.lenses.compare import LensComparison, compare_lenses
from vlm_lens.lenses.embedding_lens import EmbeddingLens
from vlm_lens.lenses.fitted import FittedLens
from vlm_lens.lenses.jacobian import JacobianLens
from vlm_lens.lenses.latent_lens import LatentLens
from vlm_lens.lenses.logit_lens import LogitLens, VocabularyLens
from vlm_lens.lenses.patchscope import Patchscope
from vlm_lens.lenses.reading_score import ReadingScore, score_reading
from vlm_lens.lenses.result import LensResult, LensRow
from vlm_lens.lenses.tower_lens import TowerLens
from vlm_lens.lenses.tuned import TunedLens

__all__ = [
    "Bank",
    "EmbeddingLens",
    "FittedLens",
    "JacobianLens",
    "LatentLens",
    "Lens",
    "LensComparison",
    "LensError",
    "LensResult",
    "LensRow",
    "LogitLens",
    "Patchscope",
    "Reading",
    "ReadingScore",
    "States",
    "TowerLens",
    "TunedLens",
    "VocabularyLens",
    "compare_lenses",
    "in_contexts",
    "score_reading",
]
