"""What recipes of one method share."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import pytest

from recipes.plain import small
from vlm_lens.recipes import CrossModalPatch, MethodRecipe, MethodResult, RecipeError, Result
from vlm_lens.recipes.parts import method_recipe as m

TASK = small("food-color", 6, 6)


# A method of one's own beside the paper's, in full: the patch at every block from one on.
@dataclass(frozen=True)
class EveryBlock(MethodRecipe):
    first: int = 3

    def measure(self, vlm):
        paper = self.paper()
        reference, vector, runs = paper.measure(vlm), paper.reader(vlm), []
        for task in self.chosen_tasks():
            methods = {
                ("Every block", seed): [
                    paper.patch(layer, vector(task, seed))
                    for layer in range(self.first, vlm.cfg.n_layers)
                ]
                for seed in self.used_seeds()
            }
            runs += self.runs(vlm, task, methods)
        return m.with_methods(reference, runs, self, notes=["Every block: from one block on."])


@pytest.fixture(scope="module")
def results(toy):
    shared = {"tasks": TASK, "seeds": 1, "layer": 4, "controls": False}
    paper = CrossModalPatch(**shared).run(toy, progress=False)
    return paper, EveryBlock(**shared).run(toy, progress=False)


def test_the_method_stands_beside_numbers_that_are_those_of_the_paper_s_recipe(results):
    paper, every = results
    shared = every.table[every.table["method"].isin(paper.table["method"])]
    pd.testing.assert_frame_equal(shared.reset_index(drop=True), paper.table)
    assert set(every.table["method"]) == {*paper.table["method"], "Every block"}
    assert every.provenance["recipe"]["class"] == "EveryBlock"
    assert len(every.predictions) == len(paper.predictions) + len(TASK.test)


def test_from_the_last_block_on_it_is_the_patch_of_the_last_block(toy):
    shared = {"tasks": TASK, "seeds": 1, "layer": 7, "controls": False}
    result = EveryBlock(first=7, **shared).run(toy, progress=False)
    answers = result.predictions
    one, other = (
        answers[answers["method"] == name]["prediction"].tolist()
        for name in ("Patch", "Every block")
    )
    assert one == other


def test_results_side_by_side(results, tmp_path, toy):
    paper, every = results
    both = m.side_by_side(paper, every)
    assert type(both) is MethodResult
    pd.testing.assert_frame_equal(both.table, every.table)
    assert both.accuracy("Every block") == every.accuracy("Every block")
    assert [one["recipe"]["class"] for one in both.provenance["results"]] == [
        "CrossModalPatch", "EveryBlock"
    ]  # fmt: skip
    pd.testing.assert_frame_equal(m.side_by_side([paper, every]).table, both.table)  # or a list
    again = Result.load(both.save(tmp_path))
    assert repr(again) == repr(both)
    other = CrossModalPatch(
        tasks=TASK, seeds=1, layer=4, controls=False, query="text"
    ).run(toy, progress=False)  # fmt: skip
    with pytest.raises(RecipeError, match="different query"):
        m.side_by_side(paper, other)
    with pytest.raises(RecipeError, match="at least one"):
        m.side_by_side()


def test_errors_name_the_recipe_that_was_made():
    with pytest.raises(RecipeError, match=r"EveryBlock\.n_examples is 0"):
        EveryBlock(n_examples=0)
    with pytest.raises(RecipeError, match=r"EveryBlock\.controls names 'rundom'"):
        EveryBlock(controls=("rundom",))
