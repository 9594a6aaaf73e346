"""Recipes: the experiments of Luo et al. 2025 (arXiv 2410.22330), and what one's own are made of.

A recipe is a frozen dataclass; `.run(vlm)` gives a Result that prints, plots and saves itself.
"""

from __future__ import annotations

from vlm_lens.recipes.base import Recipe, RecipeError, Result
from vlm_lens.recipes.cross_modal_patch import CrossModalPatch, TransferResult
from vlm_lens.recipes.phase_analysis import PhaseAnalysis, PhaseResult

__all__ = [
    "CrossModalPatch",
    "PhaseAnalysis",
    "PhaseResult",
    "Recipe",
    "RecipeError",
    "Result",
    "TransferResult",
]
