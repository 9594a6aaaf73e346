"""Directions that set prompts apart, and subspaces that carry a variable."""

from vlm_lens.directions.confidence import internal_confidence
from vlm_lens.directions.das import Counterfactual, DasResult, Subspace, das
from vlm_lens.directions.direction import Direction

__all__ = [
    "Counterfactual",
    "DasResult",
    "Direction",
    "Subspace",
    "das",
    "internal_confidence",
]
