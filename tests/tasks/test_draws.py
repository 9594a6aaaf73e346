"""The draws, against an independent computation with numpy's global generator."""

from __future__ import annotations

import numpy as np
import pytest

from vlm_lens.tasks import TaskError, draw_examples
from vlm_lens.tasks.draws import draw_one


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("rows", [30, 100])
def test_draws_equal_those_of_the_global_generator(seed: int, rows: int) -> None:
    kept = np.random.get_state()
    np.random.seed(seed)
    expected = []
    for query in range(rows):
        others = np.delete(np.arange(rows), query)
        np.random.shuffle(others)
        expected.append(others[:5].tolist())
    np.random.set_state(kept)
    assert draw_examples(rows, 5, seed=seed) == expected


def test_draws_leave_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].copy()
    draw_examples(30, 5, seed=1)
    draw_one(30, 5, seed=1)
    assert np.array_equal(before, np.random.get_state()[1])


def test_query_is_never_among_its_examples_and_none_is_there_twice() -> None:
    for query, drawn in enumerate(draw_examples(30, 29, seed=7)):
        assert sorted([*drawn, query]) == list(range(30))


def test_more_examples_continue_the_same_draw() -> None:
    few, many = draw_examples(30, 2, seed=4), draw_examples(30, 9, seed=4)
    assert [drawn[:2] for drawn in many] == few


def test_draw_one() -> None:
    assert draw_one(6, 3, seed=0) == np.random.RandomState(0).permutation(6)[:3].tolist()
    assert 2 not in draw_one(6, 5, seed=0, query=2)


@pytest.mark.parametrize(("rows", "n", "message"), [(5, 5, "only 4 are left"), (5, -1, "negative")])
def test_impossible_draws(rows: int, n: int, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        draw_examples(rows, n, seed=0)
