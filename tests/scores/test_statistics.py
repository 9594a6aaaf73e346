"""Intervals and p-values against scipy and against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vlm_lens.scores.statistics import bootstrap_interval, sign_flip_p

DRAWN = np.random.default_rng(0).normal(0.3, 1, (10, 3))


def test_p_of_few_is_scipys_exact_one():
    for column, p in zip(DRAWN.T, sign_flip_p(DRAWN), strict=True):
        exact = stats.permutation_test(
            (column,), np.mean, permutation_type="samples", n_resamples=np.inf
        )
        assert p == pytest.approx(exact.pvalue, abs=1e-12)


def test_p_of_many_is_near_the_t_test_and_never_zero():
    many = np.random.default_rng(1).normal(0, 1, (200, 4))
    many[:, 0] += 5
    p = sign_flip_p(many, permutations=5000)
    assert p[0] == 1 / 5001
    assert p[1:] == pytest.approx(stats.ttest_1samp(many[:, 1:], 0).pvalue, abs=0.03)
    assert p.tolist() == sign_flip_p(many, permutations=5000).tolist()


def test_p_of_equal_values_is_known():
    ones = np.ones((6, 1))
    assert sign_flip_p(ones).tolist() == [2 / 2**6]  # all signs equal, the one way or the other
    assert sign_flip_p(np.zeros((6, 2))).tolist() == [1, 1]


def test_interval_is_near_scipys_and_near_the_normal_one():
    many = np.random.default_rng(2).normal(1, 2, (400, 2))
    low, high = bootstrap_interval(many, resamples=4000)
    for i, column in enumerate(many.T):
        theirs = stats.bootstrap(
            (column,), np.mean, method="percentile", n_resamples=4000,
            rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        assert (low[i], high[i]) == pytest.approx((theirs.low, theirs.high), abs=0.02)
        half = 1.96 * column.std() / 20
        assert (low[i], high[i]) == pytest.approx(
            (column.mean() - half, column.mean() + half), abs=0.02
        )


def test_intervals_of_few_hold_the_mean_as_often_as_they_say():
    draw = np.random.default_rng(4)
    for n, often in ((5, 0.89), (8, 0.925), (30, 0.93)):  # 0.83, 0.89, 0.93 as plain percentiles
        low, high = bootstrap_interval(draw.normal(1, 1, (n, 1500)))
        assert often < ((low <= 1) & (high >= 1)).mean() < 0.965
    assert np.isnan(bootstrap_interval(np.ones((1, 2)))).all()


def test_many_cells_in_parts_are_what_they_are_alone():
    wide = np.random.default_rng(3).normal(0, 1, (15, 3000))
    low, high = bootstrap_interval(wide, resamples=50)
    p = sign_flip_p(wide, permutations=50)
    for cell in (0, 2047, 2048, 2999):
        one = wide[:, cell : cell + 1]
        assert bootstrap_interval(one, resamples=50) == (
            pytest.approx(low[cell : cell + 1]), pytest.approx(high[cell : cell + 1]),
        )  # fmt: skip
        assert sign_flip_p(one, permutations=50) == pytest.approx(p[cell : cell + 1])
