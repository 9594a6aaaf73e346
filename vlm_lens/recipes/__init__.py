"""Recipes: the experiments of Luo et al. 2025 (arXiv 2410.22330), and what one's own are made of.

A recipe is a frozen dataclass; `.run(vlm)` gives a Result that prints, plots and saves itself.
"""

from __future__ import annotations

from vlm_lens.recipes.back_patching import BackPatching, BackPatchingResult
from vlm_lens.recipes.base import Recipe, RecipeError, Result
from vlm_lens.recipes.causal_tracing import CausalTracing, CausalTracingResult
from vlm_lens.recipes.circuit_faithfulness import CircuitFaithfulness, CircuitResult
from vlm_lens.recipes.compare import compare
from vlm_lens.recipes.cross_modal_patch import CrossModalPatch, TransferResult
from vlm_lens.recipes.function_vectors import FunctionVectors, FunctionVectorsResult
from vlm_lens.recipes.heads_of_pairs import (
    AttributionPatching,
    DirectLogitAttribution,
    HeadsResult,
    PairPatching,
    PairRecipe,
    heads_side_by_side,
)
from vlm_lens.recipes.heads_that_look import HeadsThatLook, HeadsThatLookResult
from vlm_lens.recipes.image_to_text import ImageToText
from vlm_lens.recipes.image_token_ablation import ImageTokenAblation, ImageTokenAblationResult
from vlm_lens.recipes.information_flow import InformationFlow, InformationFlowResult
from vlm_lens.recipes.instruction_ensemble import EnsembleResult, InstructionEnsemble
from vlm_lens.recipes.inter_model_transfer import InterModelResult, InterModelTransfer
from vlm_lens.recipes.layer_sweep import LayerSweep, LayerSweepResult
from vlm_lens.recipes.multimodal_task_vectors import (
    MultimodalTaskVectors,
    MultimodalTaskVectorsResult,
)
from vlm_lens.recipes.noisy_instruction import NoisyInstruction, NoisyResult
from vlm_lens.recipes.parts.controls import Control
from vlm_lens.recipes.parts.judges import Case, Endpoint, ExactRules, Wanted
from vlm_lens.recipes.parts.method_recipe import MethodRecipe, MethodResult, side_by_side
from vlm_lens.recipes.parts.override_result import OverrideItem, OverrideResult
from vlm_lens.recipes.phase_analysis import PhaseAnalysis, PhaseResult
from vlm_lens.recipes.projecting_away import ProjectingAway, ProjectingAwayResult
from vlm_lens.recipes.prompt_cost import CostResult, PromptCost
from vlm_lens.recipes.qualitative import Qualitative, QualitativeResult
from vlm_lens.recipes.task_override import TaskOverride
from vlm_lens.recipes.task_space import TaskSpace, TaskSpaceResult
from vlm_lens.recipes.top_decodings import TopDecodings, TopDecodingsResult

__all__ = [
    "AttributionPatching",
    "BackPatching",
    "BackPatchingResult",
    "Case",
    "CausalTracing",
    "CausalTracingResult",
    "CircuitFaithfulness",
    "CircuitResult",
    "Control",
    "CostResult",
    "CrossModalPatch",
    "DirectLogitAttribution",
    "Endpoint",
    "EnsembleResult",
    "ExactRules",
    "FunctionVectors",
    "FunctionVectorsResult",
    "HeadsResult",
    "HeadsThatLook",
    "HeadsThatLookResult",
    "ImageToText",
    "ImageTokenAblation",
    "ImageTokenAblationResult",
    "InformationFlow",
    "InformationFlowResult",
    "InstructionEnsemble",
    "InterModelResult",
    "InterModelTransfer",
    "LayerSweep",
    "LayerSweepResult",
    "MethodRecipe",
    "MethodResult",
    "MultimodalTaskVectors",
    "MultimodalTaskVectorsResult",
    "NoisyInstruction",
    "NoisyResult",
    "OverrideItem",
    "OverrideResult",
    "PairPatching",
    "PairRecipe",
    "PhaseAnalysis",
    "PhaseResult",
    "ProjectingAway",
    "ProjectingAwayResult",
    "PromptCost",
    "Qualitative",
    "QualitativeResult",
    "Recipe",
    "RecipeError",
    "Result",
    "TaskOverride",
    "TaskSpace",
    "TaskSpaceResult",
    "TopDecodings",
    "TopDecodingsResult",
    "TransferResult",
    "Wanted",
    "compare",
    "heads_side_by_side",
    "side_by_side",
]
