"""Accuracies of runs as rows, their controls, and paired differences between runs."""

from __future__ import annotations

import numpy as np
import pytest

from vlm_lens import HookedVLM
from vlm_lens.recipes import CrossModalPatch
from vlm_lens.reproduce.accuracies import accuracies, controls, joined


@pytest.fixture(scope="module")
def runs():
    """Two pairs of modalities on a shipped model, one task."""
    vlm = HookedVLM.from_pretrained("toy-llava")
    make = lambda source: CrossModalPatch(  # noqa: E731
        "food-color", source=source, seeds=1, layer=3, controls=("random",)
    )
    return {source: make(source).run(vlm, progress=False) for source in ("text", "image")}


def test_differences_between_runs_are_paired_by_query(runs):
    whole = joined(runs)
    found = whole.difference("text: Patch", "image: Prompt")
    by_query = [
        run.predictions[run.predictions["method"] == method].set_index("input")["correct"]
        for run, method in ((runs["text"], "Patch"), (runs["image"], "Prompt"))
    ]
    apart = by_query[0].astype(float) - by_query[1].astype(float)
    assert found.mean == pytest.approx(apart.mean())
    half = 1.96 * apart.std(ddof=0) / len(apart) ** 0.5  # what the bootstrap comes near to
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.2)
    assert whole.accuracy("image: Prompt") == runs["image"].accuracy("Prompt")


def test_rows_hold_every_rule_and_interval_and_no_number_of_a_paper_without_one(runs):
    (told,) = [r for r in controls(runs["text"], "text") if r["task"] == "mean"]
    assert told["method"] == "control, text: Random vector"
    table = runs["text"].table.set_index(["method", "task"])
    for column in ("low", "high", "strict", "balanced"):
        assert told[column] == table.loc[("Random vector", "mean"), column]
    assert np.isnan(told["seeds_low"]) and told["paper"] is None and told["paper_model"] == ""
    patch = list(accuracies(runs["text"], "Patch", "table2", "Idefics2", "Text Examples Patch"))
    assert patch[-1]["task"] == "mean" and patch[-1]["paper"] == 0.51
