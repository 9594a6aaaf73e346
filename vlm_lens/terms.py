"""The terms of experiments: names of methods, controls and phases as tables and figures hold them.

Recipes write them, figures, reports and commands look them up. A table has one row for each task
and for `MEAN`, the mean over tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

MEAN = "mean"

# A layer is a 0-based block, by its output; before the first block the stream is the embedding.
EMBED = "embed"
Layer = int | Literal["embed"]

# Cross-modal patching and its controls.
NO_CONTEXT = "No Context"
PROMPT = "Prompt"
PATCH = "Patch"
WRONG_SAME = "Wrong task, same domain"
AS_DONOR = "Wrong task, as that task"
WRONG_OTHER = "Wrong task, other domain"
RANDOM = "Random vector"
SHUFFLED = "Shuffled labels"
SINGLE = "Single prompt"
ADDED = "Added, not replaced"
MAJORITY = "Majority answer"
BEST_TOKEN = "Best constant token"
METHODS = (
    NO_CONTEXT, PROMPT, PATCH, WRONG_SAME, AS_DONOR, WRONG_OTHER, RANDOM, SHUFFLED, SINGLE, ADDED,
    MAJORITY, BEST_TOKEN,
)  # fmt: skip
TEXT_PROMPT = "Prompt, examples in text"
PATCH_BASE = "Patch, base LLM"
PATCH_UNRELATED = "Patch, unrelated LLM"

# Cost of a forward pass.
PROMPTING = "Prompting (examples + query)"
PATCHING = "Patching (vector + query)"
QUERY_ONLY = "Query only"

# Ensembles of an instruction and examples, and what a number n of examples means.
INSTRUCTION, EXAMPLES, ENSEMBLE = "Instruction", "Examples", "Ensemble"
AVERAGED, IN_CONTEXT = "averaged", "in context"

# Task overriding, and what a judge says of an answer.
ORIGINAL_TASK = "Original Task"
SYSTEM_PROMPT = "+ System Prompt"
INSTRUCTION_PATCH = "+ Instruction Patch"
WRONG_INSTRUCTION_PATCH = "+ Wrong Instruction Patch"
INSTRUCTION_RANDOM = "+ Random Vector"
ORIGINAL, OVERRIDING, BOTH, NEITHER = "original", "overriding", "both", "neither"
VERDICTS = (ORIGINAL, OVERRIDING, BOTH, NEITHER)

# Phases of a forward pass.
INPUT, TASK, ANSWER = "input", "task", "answer"
PHASES = (INPUT, TASK, ANSWER)

# Sets of points of the task space.
CONTEXT, VECTORS = "context", "task vectors"

# Columns of a score: by the prefix rule, its intervals (heading, bounds), by the other rules.
INTERVALS = (("95 % queries", "low", "high"), ("95 % seeds", "seeds_low", "seeds_high"))
OTHER_RULES = ("strict", "balanced")
WHOLE_RULES = ("whole", "answer_prob")  # where answers of several tokens are scored as a whole
BESIDE_ACCURACY = (*(bound for _, *bounds in INTERVALS for bound in bounds), *OTHER_RULES)
SCORES = ("accuracy", *BESIDE_ACCURACY)


def layers_of(n_layers: int) -> list[Layer]:
    """The layers of a residual stream: the embedding, then every block."""
    return [EMBED, *range(n_layers)]


def layer_name(layer: Layer) -> str:
    """A layer in a sentence: `embed`, `block 3`."""
    return EMBED if layer == EMBED else f"block {layer}"


def layer_ticks(layers: Sequence[Any]) -> dict[str, list]:
    """The ticks of an axis along which layers stand one after another: places and labels."""
    step = 1 if len(layers) <= 20 else 4
    shown = [i for i, layer in enumerate(layers) if layer == EMBED or layer % step == 0]
    return {"tickvals": shown, "ticktext": [str(layers[i]) for i in shown]}


def short_names(tasks: Sequence[str]) -> dict[str, str]:
    """Task names without their domain, where that leaves them different."""
    short = {task: task.rpartition("-")[2] for task in tasks}
    return short if len(set(short.values())) == len(short) else {task: task for task in tasks}


def swapped(swaps: int) -> str:
    """The patch of an instruction with that many swapped characters."""
    return f"{PATCH}, {swaps} swap{'s' * (swaps > 1)}" if swaps else PATCH


def examples_of(modality: str) -> str:
    """What a prompt of a modality holds: an instruction, or examples of a kind."""
    return modality if modality == "instruction" else f"{modality} examples"


# Attention knockout: the groups of positions, and which keys are hidden from which queries.
RANDOM_KEYS = "random"
CUT_EDGES = (
    ("input", "last"), ("question", "last"), ("input", "question"), (RANDOM_KEYS, "last"),
)  # fmt: skip

# Pair patching: its controls.
RANDOM_PLACES = "random positions"
OTHER_ANSWERS = "random answers"
