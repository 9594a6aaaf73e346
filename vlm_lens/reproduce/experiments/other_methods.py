"""Methods that came before and after the paper's, on the same tasks, in one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_lens.recipes import BackPatching, FunctionVectors, MultimodalTaskVectors
from vlm_lens.reproduce.accuracies import CHOSEN, accuracies, blocks
from vlm_lens.reproduce.experiment import Comparison, Experiment, Finding, Results
from vlm_lens.terms import METHODS, PATCH

if TYPE_CHECKING:
    from vlm_lens.recipes import Recipe
    from vlm_lens.reproduce.setup import Setup

__all__ = ["EXPERIMENTS"]

RECIPES = {
    "function-vectors": FunctionVectors,
    "head-vectors": MultimodalTaskVectors,
    "back-patching": BackPatching,
}
_HEADS = 8  # small models have few


def _recipes(setup: Setup) -> dict[str, Recipe]:
    trials = min(25, setup.fewest("validation"))
    # Models of the package take the task from the kind of answers: shuffling them spoils nothing.
    spoiled = "mixed" if setup.is_organism else "shuffled"
    own = {"function-vectors": {"trials": trials, "heads": _HEADS, "corruption": spoiled}}
    return {
        name: setup.make(recipe, seeds=1, controls=("random",), **own.get(name, {}))
        for name, recipe in RECIPES.items()
    }


def _compare(setup: Setup, results: Results) -> Comparison:
    rows, means = [], {}
    for result in results.values():
        for method in dict.fromkeys(result.table["method"]):
            if method not in means:
                rows += accuracies(result, method, "", "", method)
                means[method] = result.accuracy(method)
    own = {m: v for m, v in means.items()
           if m not in METHODS and "random" not in m.lower()}  # fmt: skip
    best = max(own, key=own.get)
    finding = Finding(
        "(not in the paper) Other methods beside the paper's patch, in one table.",
        "not measured",
        f"{PATCH} {means[PATCH]:.2f}; the highest of the {len(own)} others, controls left out (a "
        f"maximum taken on the test rows): {best}, {own[best]:.2f}",
    )
    return Comparison.of(rows, blocks("", results), [finding])


_MIXED = (
    "Heads are found in prompts whose answers are mixed from other tasks: the shuffled answers of "
    "Todd et al. leave the task unchanged for this model, which takes it from the kind of answers."
)

EXPERIMENTS = (
    Experiment(
        id="methods",
        title="Beyond the paper: other methods on the same tasks",
        claim="Function vectors (Todd et al. 2024), multimodal task vectors (Huang et al. 2024), "
        "back-patching (Nikankin et al. 2025) and the paper's patch, side by side.",
        recipes=_recipes,
        compare=_compare,
        differs=lambda s: (
            "None of this is in the paper.",
            f"One seed, {_HEADS} heads in a function vector; each recipe says where it departs "
            "from its source.",
            *((_MIXED,) if s.is_organism else ()),
            CHOSEN,
        ),
    ),
)
