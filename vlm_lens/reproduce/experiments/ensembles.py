"""Figure 6: vectors of an instruction, of examples, and of both together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vlm_lens.recipes import InstructionEnsemble
from vlm_lens.recipes.parts.scoring import over_seeds
from vlm_lens.reproduce.experiment import Comparison, Experiment, Finding, Results, always
from vlm_lens.terms import AVERAGED, ENSEMBLE, EXAMPLES, INSTRUCTION, MEAN

if TYPE_CHECKING:
    from vlm_lens.recipes import EnsembleResult, Recipe
    from vlm_lens.reproduce.setup import Setup

__all__ = ["EXPERIMENTS"]

RUN, MODEL = "instruction-ensemble", "Idefics2"
COUNTS = (5, 10, 15, 20, 25, 30)


def _recipes(setup: Setup) -> dict[str, Recipe]:
    counts = tuple(n for n in COUNTS if n <= setup.fewest("validation"))
    return {RUN: setup.make(InstructionEnsemble, counts=counts)}


def _compare(setup: Setup, results: Results) -> Comparison:
    result = results[RUN]
    rows = []
    for one in result.table.to_dict("records"):
        n = f", n = {one['n']} {one['meaning']}" if one["n"] else ""
        low, high = over_seeds(_by_seed(result, one))
        name = {"method": f"{one['method']}{n}", "task": one["task"], "here": one["accuracy"]}
        rows.append({**name, "seeds_low": low, "seeds_high": high})
    return Comparison.of(rows, findings=_findings(result))


def _by_seed(result: EnsembleResult, one: dict[str, Any]) -> list[float]:
    """The accuracies of the seeds whose mean a row of the table is."""
    seeds = result.tables["seeds"]
    for key in ("method", "meaning", "n"):
        seeds = seeds[seeds[key] == one[key]]
    if one["task"] != MEAN:
        seeds = seeds[seeds["task"] == one["task"]]
    return seeds.groupby("seed")["accuracy"].mean().tolist()


def _findings(result: EnsembleResult) -> Iterator[Finding]:
    instruction, examples = result.accuracy(INSTRUCTION), result.accuracy(EXAMPLES, 5)
    both = result.accuracy(ENSEMBLE, 5)
    gain = (
        f"{100 * (both / examples - 1):+.0f} %" if examples else "no examples' accuracy to compare"
    )
    yield Finding(
        "The ensemble of the instruction and 5 examples does better than the 5 examples.",
        f"{MODEL}: +18 %",
        f"{both:.2f} against {examples:.2f}, {gain}",
        both > examples,
    )
    yield Finding(
        "The instruction alone is about as good as 5 examples.",
        f"{MODEL}: said, not numbered",
        f"{instruction:.2f} against {examples:.2f}",
        instruction > 0 and abs(instruction - examples) <= 0.05,
    )
    table = result.table[result.table["task"] == MEAN]
    table = table[(table["meaning"] == AVERAGED) & (table["n"] == 5)]
    spread = table.set_index("method")["sd"]
    if spread.notna().all():
        yield Finding(
            "The ensemble varies less over seeds than the examples do.",
            f"{MODEL}: shown, not numbered",
            f"standard deviation {spread[ENSEMBLE]:.3f} against {spread[EXAMPLES]:.3f}",
            bool(spread[ENSEMBLE] < spread[EXAMPLES]),
        )


EXPERIMENTS = (
    Experiment(
        id="figure6",
        rows=("E5",),
        title="Figure 6: instruction, examples, and both",
        claim="A vector can come from an instruction alone; averaged with one of examples it is "
        "better and varies less.",
        recipes=_recipes,
        compare=_compare,
        differs=always(
            "The values of the paper's curves cannot be recovered.",
            "In the paper's code n = 30 means six prompts of five examples, averaged; the other "
            "meaning, one prompt of 30, is run too. Case is ignored, as in the paper.",
            "There are no controls, and only one rule judges.",
        ),
    ),
)
