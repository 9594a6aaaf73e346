"""The figure of methods."""

from __future__ import annotations

import pandas as pd

from vlm_lens.figures.methods import method_dots
from vlm_lens.recipes import MethodResult, TransferResult


def made(kind=TransferResult):
    columns = ["task", "method", "accuracy", "low", "high", "strict", "balanced", "queries"]
    rows = [
        ("a", "Patch", 0.5, 0.4, 0.7, 0.5, 0.5, 10), ("b", "Patch", 0.7, 0.6, 0.8, 0.7, 0.6, 10),
        ("mean", "Patch", 0.6, 0.5, 0.7, 0.6, 0.5, 20), ("a", "Odd", 0.1, 0.0, 0.2, 0.1, 0.1, 10),
    ]  # fmt: skip
    tables = {"layers": pd.DataFrame()}
    values = {"source": "text", "query": "image", "layer": 4}
    return kind(pd.DataFrame(rows, columns=columns), tables, values)


def test_every_method_has_its_mean_also_with_one_seed():
    figure = method_dots(made().table, title="methods")
    tasks, means = figure.data
    assert list(means.y) == ["Patch"] and list(means.x) == [0.6]
    assert means.error_x.array[0] == 0.7 - 0.6 and means.error_x.arrayminus[0] == 0.6 - 0.5
    assert list(tasks.y) == ["Patch", "Patch", "Odd"]
    assert figure.layout.yaxis.categoryarray == ("Odd", "Patch")


def test_no_result_draws_a_figure_twice_and_methods_of_ones_own_come_first():
    orders = {kind: list(made(kind).plots()) for kind in (TransferResult, MethodResult)}
    assert orders[TransferResult] == ["transfer", "methods"]
    assert orders[MethodResult] == ["methods", "transfer"]
    for kind in orders:
        pages = [figure.to_json() for figure in made(kind).plots().values()]
        assert len(set(pages)) == len(pages)
