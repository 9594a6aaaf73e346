"""Figures 4, 7 and 11: what the model says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlm_lens.recipes import ImageToText, Qualitative
from vlm_lens.reproduce import paper
from vlm_lens.reproduce.accuracies import CHOSEN, accuracies, better, blocks, controls
from vlm_lens.reproduce.experiment import Comparison, Experiment, Results, always
from vlm_lens.reproduce.experiments.instructions import OVERRIDE, override_run
from vlm_lens.terms import (
    INSTRUCTION_PATCH,
    NO_CONTEXT,
    ORIGINAL_TASK,
    PATCH,
    PROMPT,
    TEXT_PROMPT,
)

if TYPE_CHECKING:
    from vlm_lens.recipes import Recipe
    from vlm_lens.reproduce.setup import Setup

__all__ = ["EXPERIMENTS"]

MODEL, COUNTED = "Idefics2", "image-to-text"
TEXT_IMAGE, IMAGE_TEXT = "outputs-text-image", "outputs-image-text"
_ROWS = 2  # shown of each task, the first ones


def _outputs(table: Any) -> list[dict[str, str]]:
    """One row an output: what was asked by which method, and what was said."""
    return [
        {
            "what": f"{one['task']}, {one['input']}, {one['method']} (right: {one['answer']})",
            "here": one["output"],
        }
        for one in table.to_dict("records")
    ]


def _printed(figure: str) -> list[dict[str, str]]:
    """The paper's own outputs, on its own inputs."""
    table = paper.outputs()
    return [
        {
            "what": f"in the paper: {one['query']}, {one['method']}",
            "here": "",
            "paper": one["output"],
            "paper_model": MODEL,
        }
        for one in table[table["figure"] == figure].to_dict("records")
    ]


def _shown(setup: Setup, results: Results) -> Comparison:
    return Comparison.of(texts=[*_outputs(results[TEXT_IMAGE].table), *_printed("figure4")])


def _overridden(setup: Setup, results: Results) -> Comparison:
    table = results[OVERRIDE].tables["predictions"]
    kept = (ORIGINAL_TASK, INSTRUCTION_PATCH)
    first = table[table["method"].isin(kept)].groupby(["task", "method"], sort=False).head(1)
    rows = [
        {
            "what": f"{one['input']}: {one['original']} against {one['overriding']} "
            f"({one['method']})",
            "here": one["prediction"].strip().split("\n")[0],
        }
        for one in first.to_dict("records")
    ]
    return Comparison.of(texts=[*rows, *_printed("figure7")])


def _asked(setup: Setup) -> str:
    """Queries by description, where tasks are the shipped ones, which have them."""
    return "description" if setup.shipped else "text"


def _image_text(setup: Setup) -> dict[str, Recipe]:
    query = _asked(setup)
    return {
        COUNTED: setup.make(ImageToText, query=query, seeds=1),
        IMAGE_TEXT: setup.make(Qualitative, source="image", query=query, rows=1, n_examples=3),
    }


def _described(setup: Setup, results: Results) -> Comparison:
    result, rows = results[COUNTED], []
    for method in (NO_CONTEXT, TEXT_PROMPT, PROMPT, PATCH):
        name = f"Image {method}" if method in (PROMPT, PATCH) else method
        rows += accuracies(result, method, "", "", name)
    rows += controls(result, shown=(TEXT_PROMPT,))
    finding = better(
        "The vector of pictures also works on texts.",
        f"{MODEL}: 3 of 3 shown cases, prompting with pictures 1 of 3",
        result,
        PATCH,
        PROMPT,
        named=True,
    )
    outputs = [
        *blocks(MODEL, {"image examples": result}),
        *_outputs(results[IMAGE_TEXT].table),
        *_printed("figure11"),
    ]
    return Comparison.of(rows, outputs, [finding])


EXPERIMENTS = (
    Experiment(
        id="figure4",
        rows=("E14",),
        title="Figure 4: what the model says, text examples and a picture",
        claim="Alone, the query is named; prompted, the model copies the form of the examples; "
        "patched, it does the task.",
        recipes=lambda s: {TEXT_IMAGE: s.make(Qualitative, rows=_ROWS)},
        compare=_shown,
        differs=always(
            f"The first {_ROWS} test rows of each task, not chosen; the paper's cases are. Those "
            "that the patch gets right stand first. Where its answer begins with the task's own "
            "word, the vector has told which task to do, and the answer was not found."
        ),
        stand_in=lambda s: (
            "the shipped pictures instead of the paper's photographs." if s.shipped else ""
        ),
    ),
    Experiment(
        id="figure7",
        rows=("E14",),
        title="Figure 7: what the model says when its task is overridden",
        claim="A prompt that asks one question is answered as if it asked another.",
        recipes=override_run,
        compare=_overridden,
        figures=lambda s, results: [],
        differs=always("The first row of each pair of tasks, not chosen."),
        stand_in=lambda s: (
            "pairs of the tasks over the same entities instead of the paper's questions."
        ),
    ),
    Experiment(
        id="figure11",
        rows=("E14",),
        title="Figure 11: from pictures to texts",
        claim="A vector of three picture examples does the task on a dense description.",
        recipes=_image_text,
        compare=_described,
        figures=lambda s, results: [results[COUNTED].plot()],
        differs=lambda s: (
            "The paper shows three cases and counts none; here all test rows are counted, with one "
            "seed.",
            *(("This model was trained on names, not on sentences.",) if s.is_organism else ()),
            CHOSEN,
        ),
        stand_in=lambda s: (
            (
                "descriptions of countries, animals and foods"
                if s.shipped
                else "names of what the tasks are about"
            )
            + " instead of the paper's logos, characters and memes."
        ),
    ),  # fmt: skip
)
