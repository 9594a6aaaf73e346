"""CausalTracing: its numbers are those of Pairs.patch, and its controls are what they say."""

from __future__ import annotations

import pytest

from vlm_lens import HookedVLM, Last
from vlm_lens.layout.positions import All
from vlm_lens.recipes import CausalTracing, RecipeError, Result
from vlm_lens.tasks import Task
from vlm_lens.terms import MEAN, OTHER_ANSWERS, RANDOM_PLACES

RECIPE = CausalTracing(tasks=("country-capital", "food-color"), pairs=5, n_examples=1)


@pytest.fixture(scope="module")
def toy() -> HookedVLM:
    return HookedVLM.from_pretrained("toy-llava")


@pytest.fixture(scope="module")
def result(toy):
    return RECIPE.run(toy, progress=False)


def test_shares_are_those_of_patching_pairs(toy, result):
    task = Task.load("country-capital")
    pairs = RECIPE.drawn(toy, task).solved(toy)
    found = pairs.patch(toy, "blocks.*.hook_resid_pre", at=[Last()], progress=False)
    statistics = found.statistics().set_index("layer")
    mine = result.table.query("task == 'country-capital' and at == 'last'")
    assert len(mine) == toy.cfg.n_layers
    for row in mine.itertuples():
        expected = statistics.loc[row.layer]
        assert (row.share, row.low, row.high) == pytest.approx(
            (expected["mean"], expected["low"], expected["high"]), abs=1e-5
        )
        assert row.pairs == len(pairs)
    entry = result.table.query("task == 'country-capital' and layer == 0").set_index("at")["share"]
    # what enters the first block differs at the input alone
    expected = {"input": 1, RANDOM_PLACES: 0, "last": 0, OTHER_ANSWERS: 0}
    assert entry.to_dict() == pytest.approx(expected, abs=1e-4)


def test_the_mean_is_over_all_pairs_and_controls_find_little(result):
    rows, table = result.tables["rows"], result.table
    last = table.query("task == @MEAN and at == 'last'")
    by_hand = rows.query("at == 'last'").groupby("layer")["share"].mean()
    assert last.set_index("layer")["share"].to_dict() == pytest.approx(by_hand.to_dict())
    deepest = last.sort_values("layer").iloc[-1]
    control = table[(table["task"] == MEAN) & (table["at"] == OTHER_ANSWERS)]
    control = control.sort_values("layer").iloc[-1]
    assert deepest["share"] > 0.1 and abs(control["share"]) < deepest["share"] / 2
    assert MEAN in set(table["task"])


def test_places_are_shared_out(toy):
    pair = RECIPE.drawn(toy, Task.load("food-color"))[0]
    places = RECIPE._places(pair)
    here, drawn, last = (set(places[k].resolve(pair.clean.layout))
                         for k in ("input", RANDOM_PLACES, "last"))  # fmt: skip
    assert len(drawn) == min(len(here), pair.clean.length - len(here) - 1)
    assert not here & drawn and not drawn & last
    assert here | drawn | last <= set(All().resolve(pair.clean.layout))


def test_it_prints_plots_and_saves(result, tmp_path):
    assert len(result.plots()["tracing"].data) == 3 * 4  # a line and its band for each place
    again = Result.load(result.save(tmp_path / "tracing"))
    assert again == result
    assert result.tables["pairs"]["solved"].tolist() == [5, 5]


def test_wrong_fields_are_refused(toy, no_forward):
    no_forward(toy)
    for wrong, match in (
        ({"pairs": 1}, "the least is 2"),
        ({"pairs": 500}, "rows"),
        ({"query": "sound"}, "must be"),
        ({"direction": "up"}, "must be"),
    ):
        with pytest.raises(RecipeError, match=match):
            CausalTracing(tasks="country-capital", **wrong)
