"""Results of one recipe on two models, matched row by row."""

from __future__ import annotations

import pandas as pd
import pytest

from vlm_lens.recipes import RecipeError, Result, compare


def result(table, model="one", recipe="Sweep"):
    about = {"recipe": {"class": recipe}, "model": {"name": model}}
    return Result(pd.DataFrame(table), provenance=about)


ONE = result({"layer": [0, 1], "accuracy": [0.1, 0.2], "low": [0.0, 0.1]})
TWO = result({"layer": [1, 2], "accuracy": [0.7, 0.9], "low": [0.6, 0.8]}, "two")


def test_rows_are_matched_by_layer_and_every_model_has_a_column(tmp_path):
    found = compare(ONE, TWO)
    assert list(found.table.columns) == ["layer", "one", "two"]
    assert found.table["layer"].tolist() == [0, 1, 2]
    assert found.table["one"].tolist()[:2] == [0.1, 0.2] and found.table["two"].isna()[0]
    assert found.table["two"].tolist()[1:] == [0.7, 0.9]
    assert [t.name for t in found.plot().data] == ["one", "two"]
    assert Result.load(found.save(tmp_path / "both")) == found
    assert compare([ONE, TWO], number="low").table["two"].tolist()[1:] == [0.6, 0.8]


def test_texts_tell_rows_apart_and_one_model_twice_is_numbered():
    rows = {"task": ["a", "a", "b"], "method": ["x", "y", "x"], "value": [1.0, 2.0, 3.0]}
    found = compare(result(rows), result(rows))
    assert found.table["task, method"].tolist() == ["a, x", "a, y", "b, x"]
    assert found.table["one (1)"].tolist() == found.table["one (2)"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        ((ONE,), {}, "two results or more"),
        ((ONE, 3), {}, "two results or more"),
        ((ONE, result({"layer": [0], "accuracy": [0.0]}, recipe="Other")), {}, "different recipes"),
        ((ONE, TWO), {"number": "share"}, r"no column of numbers 'share'; it has \['layer'"),
        ((result({"task": ["a", "a"], "v": [0.0, 1.0]}),) * 2, {}, "not told apart by task"),
        ((result({"task": ["a"]}),) * 2, {}, "no column of numbers to compare"),
    ],
)
def test_what_cannot_be_compared_says_why(given, options, said):
    with pytest.raises(RecipeError, match=said):
        compare(*given, **options)
