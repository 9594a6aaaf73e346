"""What is drawn over a picture: patches and tokens that have numbers, and how strongly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from vlm_lens.layout.kinds import Kind

MOST_OPAQUE = 0.65  # the strongest patch: the picture is seen through it
RULED = 150  # up to so many patches have lines between them; more lines would hide the picture


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
    kind: Kind
    index: int | None
    position: int


def strengths(values: np.ndarray, cells: Iterable[Cell]) -> np.ndarray:
    """How strongly each number is coloured: its share of the largest magnitude, with its sign.

    Patches are set against patches and everything else against the rest, because a token that draws
    a hundred times what a patch draws would leave every picture blank.

    Args:
        values: The numbers.
        cells: The patches.
    """
    found = np.zeros_like(values)
    patches = np.zeros(len(values), dtype=bool)
    patches[[c.index for c in cells]] = True
    for group in (patches, ~patches):
        largest = peak(values[group])
        if largest:
            found[group] = np.nan_to_num(values[group] / largest)
    return found


def peak(values: np.ndarray) -> float:
    """The largest magnitude; 0 of nothing."""
    known = np.abs(values[np.isfinite(values)])
    return float(known.max()) if known.size else 0.0


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
