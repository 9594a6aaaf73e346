"""Interventions: values that say what to change, and where."""

from __future__ import annotations

from vlm_lens.interventions.ablate import Ablate
from vlm_lens.interventions.base import Composed, Intervention, ModelFacts, Target, compose
from vlm_lens.interventions.patch import ActivationPatch
from vlm_lens.interventions.steer import Steer

__all__ = [
    "Ablate",
    "ActivationPatch",
    "Composed",
    "Intervention",
    "ModelFacts",
    "Steer",
    "Target",
    "compose",
]
