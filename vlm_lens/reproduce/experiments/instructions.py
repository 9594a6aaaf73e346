"""Tables 5 and 9: vectors of instructions, against another task and with typing errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vlm_lens.recipes import NoisyInstruction, TaskOverride
from vlm_lens.reproduce import paper
from vlm_lens.reproduce.accuracies import CHOSEN, accuracies, blocks, controls
from vlm_lens.reproduce.experiment import Comparison, Experiment, Finding, Results, always
from vlm_lens.terms import INSTRUCTION_PATCH, MEAN, ORIGINAL_TASK, SYSTEM_PROMPT, swapped

if TYPE_CHECKING:
    from vlm_lens.recipes import Recipe
    from vlm_lens.reproduce.setup import Setup

__all__ = ["EXPERIMENTS", "OVERRIDE", "override_run"]

MODEL = "Idefics2"

# ---------------------------------------------------------------------- Table 9

NOISY = "noisy-instruction"
SWAPS = {swapped(n): f"{n} swaps" for n in range(3)}  # as the paper calls them


def _noise(setup: Setup, results: Results) -> Comparison:
    result, rows = results[NOISY], []
    for method, printed in SWAPS.items():
        name = printed.replace("1 swaps", "1 swap")
        rows += accuracies(result, method, "table9", MODEL, name, paper_method=printed)
    rows += controls(result, shown=tuple(SWAPS))
    here = [result.accuracy(method) for method in SWAPS]
    there = [paper.lookup("table9", MODEL, name) for name in SWAPS.values()]
    finding = Finding(
        "Vectors of instructions survive typing errors: two swaps cost .04 of .39.",
        f"{MODEL}, 0, 1 and 2 swaps: " + ", ".join(f"{one:.2f}" for one in there),
        ", ".join(f"{one:.2f}" for one in here),
        here[2] >= 0.75 * here[0] > 0,
    )
    return Comparison.of(rows, blocks(MODEL, {"instructions": result}), [finding])


NOISE = Experiment(
    id="table9",
    rows=("E12",),
    title="Table 9: instructions with typing errors",
    claim="The vector of an instruction works also when characters of it are swapped.",
    recipes=lambda s: {NOISY: s.make(NoisyInstruction)},
    compare=_noise,
    differs=always(
        "The paper does not say which characters were swapped, nor whether case counts.",
        "The paper does not name its model here; its other ablations are of Idefics2.",
        "A small model has whole words as tokens: a misspelt word falls into letters.",
        CHOSEN,
    ),
)

# ---------------------------------------------------------------------- Table 5

OVERRIDE = "task-override"
_ROWS = 30  # of each pair of tasks


def override_run(setup: Setup) -> dict[str, Recipe]:
    """Task overriding, asked in the way that the model knows."""
    # Models of the package were never shown a question in words.
    how = {"original": "examples", "rows": _ROWS} if setup.is_organism else {}
    return {OVERRIDE: setup.make(TaskOverride, **how)}


def _override(setup: Setup, results: Results) -> Comparison:
    result, rows = results[OVERRIDE], []
    for one in result.table.to_dict("records"):
        rows.append(
            {
                "method": one["method"],
                "task": one["task"],
                "quantity": "share overriding",
                "here": one["accuracy"],
                "low": one["low"],
                "high": one["high"],
                "paper": _nearest(one["method"]) if one["task"] == MEAN else None,
                "paper_model": MODEL,
            }
        )
    return Comparison.of(rows, findings=_override_findings(result.table))


def _nearest(method: str) -> float | None:
    return paper.lookup("table5", MODEL, method, "factual", "share overriding")


def _override_findings(table: Any) -> Iterator[Finding]:
    means = table[table["task"] == MEAN].set_index("method")["accuracy"]
    names = (ORIGINAL_TASK, SYSTEM_PROMPT, INSTRUCTION_PATCH)
    there = ", ".join(f"{_nearest(name):.2f}" for name in names)
    here = ", ".join(f"{means[name]:.2f}" for name in names)
    yield Finding(
        "The vector of another instruction makes the model do that one, more than the instruction "
        "put before the prompt.",
        f"{MODEL}, original, system prompt, patch: {there} (factual recall)",
        here,
        bool(means[names[2]] > max(means[names[0]], means[names[1]])),
    )


OVERRIDING = Experiment(
    id="table5",
    rows=("E11",),
    title="Table 5: overriding the task of a prompt",
    claim="An instruction's vector, patched into a prompt that asks for another task, wins.",
    recipes=override_run,
    compare=_override,
    differs=lambda s: (
        "The paper counts free answers judged by GPT-4o; here answers are known, and exact rules "
        "judge. The recipe takes a judge of one's own: TaskOverride(judge=...).",
        *(("This model was shown no questions in words: its prompts ask by text examples, on "
           f"{_ROWS} test rows of each pair.",) if s.is_organism else ()),
    ),
    stand_in=lambda s: "pairs of the tasks over the same entities, instead of questions of VQAv2, "
    "OK-VQA and A-OKVQA on photographs; set beside the paper's Factual Recall, the nearest.",
)  # fmt: skip

EXPERIMENTS = (NOISE, OVERRIDING)
