"""Interventions: values that say what to change, and where."""

from __future__ import annotations

from vlm_lens.interventions.ablate import Ablate
from vlm_lens.interventions.attention_edit import AttentionEdit
from vlm_lens.interventions.base import Composed, Intervention, ModelFacts, Target, compose
from vlm_lens.interventions.interchange import Interchange
from vlm_lens.interventions.knockout import AttentionKnockout
from vlm_lens.interventions.patch import ActivationPatch
from vlm_lens.interventions.project_away import ProjectAway
from vlm_lens.interventions.resample import Resample
from vlm_lens.interventions.scale import Clamp, Scale
from vlm_lens.interventions.steer import Steer
from vlm_lens.interventions.subspace import Project, Remove

__all__ = [
    "Ablate",
    "ActivationPatch",
    "AttentionEdit",
    "AttentionKnockout",
    "Clamp",
    "Composed",
    "Interchange",
    "Intervention",
    "ModelFacts",
    "Project",
    "ProjectAway",
    "Remove",
    "Resample",
    "Scale",
    "Steer",
    "Target",
    "compose",
]
