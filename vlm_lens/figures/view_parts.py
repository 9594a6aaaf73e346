"""What is drawn over a picture: patches and tokens that have numbers, and how strongly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Cell:
    """A patch that has a number.

    Attributes:
        image: Which picture.
        grid: Which of its grids.
        at: Row and column in the grid.
        index: Which number.
    """

    image: int
    grid: int
    at: tuple[int, int]
    index: int


@dataclass(frozen=True)
class Token:
    """A token of the prompt; `index` is its number's, `None` where it has none."""

    string: str
    kind: str
    index: int | None
    position: int


def strengths(values: np.ndarray) -> np.ndarray:
    """How strongly each number is coloured: its share of the largest magnitude, with its sign."""
    largest = np.nanmax(np.abs(values)) if values.size else 0.0
    return np.nan_to_num(values / largest) if largest else np.zeros_like(values)


def drawings(grids: Iterable[tuple[int, int]]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """A drawing for each picture's first grid, and one for all the others (tiles) together.

    Args:
        grids: (picture, grid) of every grid.

    Yields:
        The picture, and the grids drawn over it.
    """
    by_image: dict[int, list[int]] = {}
    for image, grid in grids:
        by_image.setdefault(image, []).append(grid)
    for image, numbers in by_image.items():
        if len(numbers) == 1:
            yield image, tuple(numbers)
        else:
            yield image, (numbers[0],)
            yield image, tuple(numbers[1:])
