"""Results on disk, as text and as figures."""

from __future__ import annotations

import pandas as pd
import pytest

from vlm_lens.recipes import Result
from vlm_lens.recipes.parts.transfer_result import TransferResult
from vlm_lens.recipes.result import RecipeError

AWKWARD = [
    "NA",
    "",
    "None",
    "a,b",
    'say "x"',
    "line\nbreak",
    "back\rslash \\n",
    " lead",
    "é中",
    "1",
]


@pytest.fixture
def result() -> Result:
    table = pd.DataFrame(
        {
            "text": AWKWARD,
            "number": [0.1 + 0.2, 1 / 3, 1e-300, float("nan"), 2.0, 3, 4, 5, 6, 7],
            "count": range(10),
            "right": [True, False] * 5,
        }
    )
    return Result(table, {"other": table.head(0)}, {"layer": 3}, ("a note",), {"seeds": [1]})


def test_saved_and_loaded_every_value_is_the_same(result, tmp_path):
    again = Result.load(result.save(tmp_path))
    pd.testing.assert_frame_equal(again.table, result.table, check_exact=True)
    pd.testing.assert_frame_equal(again.tables["other"], result.tables["other"])
    assert (again.values, again.notes) == ({"layer": 3}, ("a note",))
    assert again.provenance == {"seeds": [1]}


def test_files_are_csv_json_and_html_without_network(result, tmp_path):
    result.save(tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"table.csv", "other.csv", "provenance.json", "figure.html", "plotly.min.js"}
    html = (tmp_path / "figure.html").read_text(encoding="utf-8")
    assert 'src="http' not in html and 'src="plotly.min.js"' in html


def test_a_table_without_numbers_is_saved_without_figure(tmp_path):
    words = Result(pd.DataFrame({"a": ["x"], "b": ["y"]}))
    with pytest.raises(RecipeError, match="no column of numbers"):
        words.plot()
    words.save(tmp_path)
    assert not list(tmp_path.glob("*.html"))


def test_to_dataframe_is_a_copy(result):
    copy = result.to_dataframe()
    copy.loc[0, "count"] = 99
    assert result.table.loc[0, "count"] == 0


def test_loading_something_else_says_so(result, tmp_path):
    with pytest.raises(RecipeError, match="no saved result"):
        Result.load(tmp_path / "nothing")
    result.save(tmp_path)
    with pytest.raises(RecipeError, match="holds a Result, not a TransferResult"):
        TransferResult.load(tmp_path)
    (tmp_path / "provenance.json").write_text("[]")
    with pytest.raises(RecipeError, match="not written by Result.save"):
        Result.load(tmp_path)


def test_text_and_html_show_the_table_and_the_notes(result):
    assert "a note" in repr(result) and "0.333" in repr(result)
    html = result._repr_html_()
    assert "<table" in html and "a note" in html


class Undrawable(Result):
    """A result with a fault in its figure."""

    fault = True

    def plots(self):
        """Fails as long as there is the fault."""
        if Undrawable.fault:
            raise KeyError("colour")
        return super().plots()


def test_a_figure_that_fails_takes_nothing_with_it_and_can_be_drawn_again(result, tmp_path):
    broken = Undrawable(result.table, result.tables, result.values, result.notes)
    with pytest.warns(UserWarning, match=r"not drawn \(KeyError: 'colour'\).*draw\(folder\)"):
        broken.save(tmp_path)
    again = Result.load(tmp_path)
    pd.testing.assert_frame_equal(again.table, result.table, check_exact=True)
    assert type(again) is Undrawable and not list(tmp_path.glob("*.html"))
    Undrawable.fault = False
    again.draw(tmp_path)
    assert [p.name for p in tmp_path.glob("*.html")] == ["figure.html"]
