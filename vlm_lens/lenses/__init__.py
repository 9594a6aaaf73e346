"""Lenses: from a hidden state to the vocabulary."""

from __future__ import annotations

from vlm_lens.lenses.logit_lens import LensError, LogitLens
from vlm_lens.lenses.result import LensResult, LensRow

__all__ = ["LensError", "LensResult", "LensRow", "LogitLens"]
