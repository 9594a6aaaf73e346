"""Differences of methods, against a paired bootstrap written out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from recipes.plain import small
from vlm_lens.recipes import CrossModalPatch, RecipeError
from vlm_lens.recipes.parts import transfer_result as t
from vlm_lens.recipes.parts.scoring import Scores

TASKS = tuple(small(name, 6, 10) for name in ("food-color", "animal-young"))


def run(task, method, seed, right):
    right = np.array(right, dtype=bool)
    answers = [row.answers for row in task.test]
    return t.Run(task, method, seed, answers, Scores(np.array(["x"] * 10), right, right))


@pytest.fixture(scope="module")
def result():
    runs = []
    for k, task in enumerate(TASKS):
        for seed in (1, 2):
            runs.append(run(task, "Patch", seed, [i < 6 + k for i in range(10)]))
            runs.append(run(task, "Prompt", seed, [i < 2 + seed for i in range(10)]))
        runs.append(run(task, "No Context", 0, [i < 6 + k for i in range(10)]))
        runs.append(run(task, "Added, not replaced", 1, [False] * 10))
    return t.transfer_result(runs, None, 3, CrossModalPatch(TASKS, seeds=2))


def test_a_difference_is_paired_by_query(result):
    found = result.difference("Patch", "Prompt")
    generator, means = np.random.default_rng(0), []
    for k in (0, 1):
        b = (np.arange(10) < 3) / 2 + (np.arange(10) < 4) / 2  # the mean over seeds
        each = (np.arange(10) < 6 + k) - b
        means.append(each[generator.integers(0, 10, (2000, 10))].mean(1))
    out = stats.t.ppf(0.975, 18) * (20 / 18) ** 0.5  # twenty queries of two tasks
    low, high = np.quantile(np.mean(means, 0), stats.norm.cdf([-out, out]))
    assert found.mean == pytest.approx((0.25 + 0.35) / 2)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.mean == pytest.approx(result.accuracy("Patch") - result.accuracy("Prompt"))
    assert str(found).startswith("+0.30 (95 % +")
    one = result.difference("Prompt", "Patch", TASKS[0].name)
    assert one.mean == pytest.approx(-0.25) and one.high <= 0


def test_methods_that_are_right_on_the_same_queries_do_not_differ(result):
    # their own intervals are wide; that of the difference is nothing
    same = result.difference("Patch", "No Context")
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_a_method_that_is_not_there_is_named(result):
    with pytest.raises(RecipeError, match="no 'Patsch'"):
        result.difference("Patsch", "Prompt")


def test_the_block_of_other_uses_is_said(result):
    assert any(n.startswith("Added, not replaced: at the block of the patch") for n in result.notes)
