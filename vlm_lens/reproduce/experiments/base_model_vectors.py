"""Tables 3 and 11: vectors of the base language model in the vision-language model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vlm_lens.recipes import InterModelTransfer
from vlm_lens.reproduce import paper
from vlm_lens.reproduce.accuracies import CHOSEN, accuracies, better, blocks, controls
from vlm_lens.reproduce.experiment import Comparison, Experiment, Finding, Results, always
from vlm_lens.terms import MEAN, PATCH, PATCH_BASE, PATCH_UNRELATED

if TYPE_CHECKING:
    from vlm_lens.recipes import InterModelResult, Recipe
    from vlm_lens.reproduce.setup import Setup

__all__ = ["EXPERIMENTS"]

RUN = "inter-model"


def _run(setup: Setup) -> dict[str, Recipe]:
    # The other controls of its own vectors stand in Table 2; the base model's are run here.
    models = {"source_model": setup.base, "unrelated_model": setup.unrelated}
    return {RUN: setup.make(InterModelTransfer, controls=("random",), **models)}


def _cosines(result: InterModelResult) -> tuple[float, float]:
    """Mean cosine of the same task's vectors, and of different tasks', at the patched block."""
    means = result.cosine("base")
    return means["matched"], means["mismatched"]


def _compare(table: str, setup: Setup, results: Results) -> Comparison:
    result = results[RUN]
    model = setup.paper_model if setup.paper_model != "Mantis-Fuyu" else "Idefics2"
    same, other = _cosines(result)
    rows = []
    if table == "table3":
        for name, here, owner in (("LLM-VLM", same, model), ("Random", other, "")):
            rows.append(
                {
                    "method": "LLM-VLM" if owner else "different tasks",
                    "quantity": "cosine",
                    "here": here,
                    "paper": paper.lookup("table3", owner, name, quantity="cosine"),
                    "paper_model": owner,
                }
            )
    for method, name in ((PATCH, "VLM-VLM"), (PATCH_BASE, "LLM-VLM")):
        rows += accuracies(result, method, "table11", model, name)
    rows += controls(result, shown=(PATCH_BASE,))
    if table == "table3":
        rows = [row for row in rows if row.get("task", MEAN) == MEAN]
    findings = _findings(model, result, same, other) if table == "table3" else ()  # said once
    patched = blocks(model, {"its own vectors and the language model's": result})
    return Comparison.of(rows, patched, findings)


def _findings(model: str, result: Any, same: float, other: float) -> Iterator[Finding]:
    printed = paper.lookup("table3", model, "LLM-VLM", quantity="cosine")
    yield Finding(
        "Vectors of the same task in the language model and in its VLM are alike, more than those "
        "of different tasks.",
        f"{model}: cosine {printed:.2f} against 0.58",
        f"{same:.2f} against {other:.2f}",
        same > other,
    )
    there = [paper.lookup("table3", model, name) for name in ("LLM-VLM", "VLM-VLM")]
    yield better(
        "The language model's vectors do better in the VLM than the VLM's own.",
        f"{model}: {there[0]:.2f} against {there[1]:.2f}",
        result,
        PATCH_BASE,
        PATCH,
    )
    if PATCH_UNRELATED in set(result.table["method"]):
        yield better(
            "(not in the paper) The language model's vectors do better than those of one that the "
            "VLM was not made from.",
            "not measured",
            result,
            PATCH_BASE,
            PATCH_UNRELATED,
        )


_CLAIM = (
    "Task vectors of the base language model are nearly those of the VLM made from it, and work in "
    "the VLM as well as its own."
)
_DIFFERS = always(
    "The paper's .58 for different tasks pools its two pairs of models; here it is one pair's.",
    "Cosines are taken at the block that is patched; the paper does not say where.",
    CHOSEN,
)


def _made(table: str, number: int, what: str) -> Experiment:
    return Experiment(
        id=table,
        rows=("E4",),
        title=f"Table {number}: {what}",
        claim=_CLAIM,
        recipes=_run,
        compare=lambda setup, results: _compare(table, setup, results),
        paper_models=("LLaVA-v1.5", "Idefics2"),
        figures=lambda s, results: [results[RUN].plot()] if table == "table11" else [],
        differs=_DIFFERS,
        needs=("images", "base"),
    )


EXPERIMENTS = (
    _made("table3", 3, "a language model's vectors in its VLM"),
    _made("table11", 11, "a language model's vectors in its VLM, task by task"),
)
