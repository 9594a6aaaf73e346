"""Which examples go with which query, drawn as the paper's code draws them."""

from __future__ import annotations

import numpy as np

from vlm_lens.integers import as_integer
from vlm_lens.tasks.rows import TaskError

__all__ = ["draw_examples", "draw_one"]


def draw_examples(rows: int, n: int, *, seed: int) -> list[list[int]]:
    """For each row in turn as the query, draw `n` other rows as its examples.

    The draws are those of the code of Luo et al. 2025 (arXiv 2410.22330), number for number. One
    generator is seeded once. Then, for query 0, 1, 2, ... in the order of the table, the indices
    of all other rows, in increasing order, are permuted once, and the first `n` are kept. Hence
    the examples of query k depend on the seed, on k and on the number of rows, and not on `n`
    except that more are kept.

    Args:
        rows: How many rows the split has.
        n: How many examples each query gets.
        seed: The seed of `numpy.random.RandomState`, which draws like `numpy.random.seed`.

    Returns:
        For each query the indices of its examples, in the order of the prompt.

    Raises:
        TaskError: There are not `n` other rows.
    """
    _check(n, rows - 1, seed)
    generator = np.random.RandomState(seed)
    drawn = []
    for query in range(rows):
        others = [i for i in range(rows) if i != query]
        drawn.append([int(i) for i in generator.permutation(others)[:n]])
    return drawn


def draw_one(rows: int, n: int, *, seed: int, query: int | None = None) -> list[int]:
    """Draw `n` distinct rows other than the query, by one permutation.

    Args:
        rows: How many rows there are to draw from.
        n: How many to draw.
        seed: The seed of `numpy.random.RandomState`.
        query: The index of a row that must not be drawn, if it is one of these rows.

    Returns:
        The indices, in the order drawn.

    Raises:
        TaskError: There are not `n` such rows.
    """
    others = [i for i in range(rows) if i != query]
    _check(n, len(others), seed)
    return [int(i) for i in np.random.RandomState(seed).permutation(others)[:n]]


def _check(n: int, available: int, seed: int) -> None:
    as_integer(n, "the number of examples", TaskError)
    if as_integer(seed, "a seed", TaskError) < 0:
        raise TaskError(f"the seed is {seed}; it cannot be negative")
    if n < 0:
        raise TaskError(f"the number of examples is {n}; it cannot be negative")
    if n > available:
        raise TaskError(
            f"{n} rows are asked for, and only {max(available, 0)} are left besides the query; "
            "ask for fewer examples or use the larger split"
        )
