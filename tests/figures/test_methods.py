"""The figure of methods."""

from __future__ import annotations

import pandas as pd

from vlm_lens.figures.methods import method_dots
from vlm_lens.recipes import MethodResult


def test_every_method_has_its_mean_also_with_one_seed():
    columns = ["task", "method", "accuracy", "low", "high", "seeds_low", "strict", "queries"]
    nan = float("nan")
    rows = [
        ("a", "Patch", 0.5, 0.4, 0.7, nan, 0.5, 10), ("b", "Patch", 0.7, 0.6, 0.8, nan, 0.7, 10),
        ("mean", "Patch", 0.6, 0.5, 0.7, nan, 0.6, 20), ("a", "Odd", 0.1, 0.0, 0.2, nan, 0.1, 10),
    ]  # fmt: skip
    values = {"source": "text", "query": "image"}
    result = MethodResult(pd.DataFrame(rows, columns=columns), values=values)
    tasks, means = method_dots(result).data
    assert list(means.y) == ["Patch"] and list(means.x) == [0.6]
    assert means.error_x.array[0] == 0.7 - 0.6 and means.error_x.arrayminus[0] == 0.6 - 0.5
    assert list(tasks.y) == ["Patch", "Patch", "Odd"]
    assert method_dots(result).layout.yaxis.categoryarray == ("Odd", "Patch")
