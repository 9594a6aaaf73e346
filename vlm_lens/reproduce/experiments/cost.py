"""Table 7: what prompting and what patching cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlm_lens.recipes import PromptCost
from vlm_lens.reproduce import paper
from vlm_lens.reproduce.experiment import Comparison, Experiment, Finding, Results, always
from vlm_lens.terms import PATCHING, PROMPTING, QUERY_ONLY

if TYPE_CHECKING:
    from vlm_lens.reproduce.setup import Setup

__all__ = ["EXPERIMENTS"]

RUN, MODEL, EXAMPLES = "prompt-cost", "Idefics2", 30
WAYS = {"Prompting": PROMPTING, "Patching": PATCHING, "Query only": QUERY_ONLY}  # as printed


def _printed(method: str, quantity: str) -> float:
    return paper.lookup("table7", MODEL, method, "one forward pass", quantity)


def _compare(setup: Setup, results: Results) -> Comparison:
    table = results[RUN].table
    rows: list[dict[str, Any]] = []
    here: dict[str, Any] = {}
    for name, method in WAYS.items():
        mine = table[table["method"] == method]
        here[name] = mine.sort_values("n_examples").iloc[-1]
        for quantity, value in (
            ("seconds", here[name]["seconds"]),
            ("gigabytes", here[name]["peak"] / 1e9),
        ):
            rows.append(
                {
                    "method": name,
                    "task": "one forward pass",
                    "quantity": quantity,
                    "here": float(value),
                    "paper": _printed(name, quantity),
                    "paper_model": MODEL,
                }
            )
    findings = []
    for quantity, column, statement in (
        ("seconds", "time_ratio", "Prompting takes 11 times the time of patching."),
        ("gigabytes", "memory_ratio", "Prompting takes 2.4 times the memory of patching."),
    ):
        ratio = _printed("Prompting", quantity) / _printed("Patching", quantity)
        mine = float(here["Prompting"][column])
        rows.append(
            {
                "method": "Prompting to patching",
                "task": "one forward pass",
                "quantity": f"ratio of {quantity}",
                "here": mine,
                "paper": ratio,
                "paper_model": MODEL,
            }
        )
        findings.append(
            Finding(statement, f"{MODEL}: {ratio:.1f} times", f"{mine:.2f} times", None)
        )
    return Comparison.of(rows, findings=findings)


EXPERIMENTS = (
    Experiment(
        id="table7",
        rows=("E13",),
        title="Table 7: cost of a forward pass",
        claim="A vector in place of 30 examples saves most of the time and memory.",
        recipes=lambda s: {
            RUN: s.make(PromptCost, task=s.tasks[0], n_examples=_examples(s), query="image")
        },
        compare=_compare,
        differs=always(
            "Median of 20 passes, run while nothing else of this command runs; the paper gives the "
            "mean of 100.",
            "Examples are short names here, dense captions in the paper: prompts differ less in "
            "length.",
            "On a CPU memory is that of the whole process, which holds Python and its libraries, "
            "and a small model is little beside them.",
        ),
        stand_in=lambda s: "30 names with their answers instead of 30 dense captions.",
        changes=True,
    ),
)


def _examples(setup: Setup) -> tuple[int, ...]:
    """5 to 30 examples, as far as the task has rows."""
    most = setup.fewest("test") - 1
    return tuple(sorted({min(n, most) for n in (5, 10, 20, EXAMPLES)}))
