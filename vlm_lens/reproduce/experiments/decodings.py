"""Tables 6 and 13 and Figure 13: the words that task vectors decode to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlm_lens.recipes import TopDecodings
from vlm_lens.recipes.parts.vector_sources import relative_layer
from vlm_lens.reproduce import paper
from vlm_lens.reproduce.experiment import Comparison, Experiment, Finding, Results, always
from vlm_lens.tasks import Task
from vlm_lens.terms import EMBED, Layer, layer_name

if TYPE_CHECKING:
    from vlm_lens.recipes import Recipe, TopDecodingsResult
    from vlm_lens.reproduce.setup import Setup

__all__ = ["EXPERIMENTS"]

MODEL, LAYERS = "Idefics2", 32
EXAMPLES, WORDS = "decodings-examples", "decodings-instruction"
FIGURE_LAYERS = (EMBED, 17, 27)  # of the paper


def _examples(setup: Setup) -> dict[str, Recipe]:
    return {EXAMPLES: setup.make(TopDecodings, sources=("text", "image"))}


def _instruction(setup: Setup) -> dict[str, Recipe]:
    return {WORDS: setup.make(TopDecodings, sources=("instruction",))}


def _printed(source: str, task: str, specification: str, layer: Layer | None = None) -> str:
    table = paper.decodings()
    mine = table[
        (table["source"] == source)
        & (table["task"] == task)
        & (table["specification"] == specification)
    ]
    if layer is not None:
        mine = mine[mine["layer"] == layer]
    return _listed(mine["token"].tolist())


def _listed(tokens: Sequence[str]) -> str:
    return ", ".join(one.strip() or "(no word)" for one in tokens)


def _vectors(table: str, result: TopDecodingsResult, setup: Setup) -> Comparison:
    """Top five of each mean vector, beside a table of the paper."""
    rows, named = [], []
    for source in dict.fromkeys(result.table["source"]):
        for task in setup.tasks:
            task = Task.load(task) if isinstance(task, str) else task
            tokens = result.top(task.name, source)
            rows.append(
                {
                    "what": f"{task.name}, {source}",
                    "here": _listed(tokens),
                    "paper": _printed(table, task.name, source),
                    "paper_model": MODEL,
                }
            )
            word = (task.task_word or "").lower()
            named.append(bool(word) and any(one.strip().lower() == word for one in tokens))
    finding = Finding(
        "Task vectors decode to words for the task.",
        f"{MODEL}: see the table",
        f"the task's own word is among the five most likely in {sum(named)} of {len(named)}",
    )
    return Comparison.of(texts=rows, findings=[finding])


def _pies(setup: Setup, results: Results) -> Comparison:
    """The commonest first tokens over runs, at three layers of the same relative depth."""
    result, rows = results[EXAMPLES], []
    counts = result.tables["top_1"]
    blocks = counts["layer"].nunique() - 1
    for layer in FIGURE_LAYERS:
        here = relative_layer(layer, LAYERS, blocks)
        for source in dict.fromkeys(counts["source"]):
            for task in setup.task_names:
                mine = counts.query("task == @task and source == @source and layer == @here")
                tokens = mine.sort_values("count", ascending=False, kind="stable")["token"][:5]
                rows.append(
                    {
                        "what": f"{task}, {source}, {_of(here, blocks)} (paper: "
                        f"{_of(layer, LAYERS)})",
                        "here": _listed(tokens.tolist()),
                        "paper": _printed("figure13", task, source, layer),
                        "paper_model": MODEL,
                    }
                )
    return Comparison.of(texts=rows)


def _of(layer: Layer, blocks: int) -> str:
    return layer_name(layer) if layer == EMBED else f"{layer_name(layer)} of {blocks}"


_DEPTH = "Layers are those of the same relative depth: blocks are 0-based, by their output."

EXPERIMENTS = (
    Experiment(
        id="table6",
        rows=("E8",),
        title="Table 6: what task vectors of examples decode to",
        claim="In the middle of the model the vector decodes to words for the task, from text and "
        "from pictures.",
        recipes=_examples,
        compare=lambda s, results: _vectors("table6", results[EXAMPLES], s),
        figures=lambda s, results: [],
        differs=always(
            _DEPTH,
            "The paper does not say whether it decodes the mean vector or averages distributions; "
            "here it is the mean vector, and the recipe's result holds both.",
        ),
    ),
    Experiment(
        id="table13",
        rows=("E8",),
        title="Table 13: what task vectors of instructions decode to",
        claim="The vector of an instruction decodes to words for the task too.",
        recipes=_instruction,
        compare=lambda s, results: _vectors("table13", results[WORDS], s),
        figures=lambda s, results: [],
        differs=always(
            _DEPTH, "The paper does not state its layer; it is taken to be that of Table 6."
        ),
    ),
    Experiment(
        id="figure13",
        rows=("E8",),
        title="Figure 13: the most likely token of single prompts",
        claim="Early layers decode to one token everywhere, middle ones to the task, late ones to "
        "answers.",
        recipes=_examples,
        compare=_pies,
        figures=lambda s, results: [results[EXAMPLES].plots()["runs"]],
        differs=always(_DEPTH),
    ),
)
