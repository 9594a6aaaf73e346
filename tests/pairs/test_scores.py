"""What many pairs say of a cell."""

from __future__ import annotations

import numpy as np
import pytest

from vlm_lens.pairs import PairScores
from vlm_lens.scores.scores import scores
from vlm_lens.scores.statistics import bootstrap_interval, sign_flip_p


def of_pairs(values):
    axes = {"pair": range(values.shape[0]), "layer": range(values.shape[1])}
    return PairScores(scores(values, axes, name="share").values)


def test_a_cell_is_of_the_pairs_that_have_a_score_there():
    values = np.random.default_rng(0).normal(1, 1, (6, 4))
    values[0, 1] = values[2:4, 2] = values[1:, 3] = np.nan
    table = of_pairs(values).statistics(seed=3).set_index("layer").sort_index()
    assert table["pairs"].tolist() == [6, 5, 4]  # one pair says nothing of the others
    for layer, row in table.iterrows():
        mine = values[~np.isnan(values[:, layer]), layer, None]
        (low,), (high,) = bootstrap_interval(mine, seed=3)
        want = (mine.mean(), low, high, sign_flip_p(mine)[0])
        assert tuple(row[["mean", "low", "high", "p"]]) == pytest.approx(want)


def test_no_cell_with_two_pairs_is_an_empty_table():
    assert of_pairs(np.array([[1, np.nan], [np.nan, 1]])).statistics().empty
