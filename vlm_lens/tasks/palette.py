"""The words of pictures that are drawn on a grid: colors that lie far apart, names of cells."""

from __future__ import annotations

__all__ = ["BACKGROUND", "COLORS", "cell_name", "cell_names"]

# The corners of the RGB cube, with the gray in its middle as the background: each channel of a
# color is either all there or not at all, so that a few pixels are enough to tell which it is.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
BACKGROUND = (128, 128, 128)


def cell_name(row: int, col: int) -> str:
    """The name of a cell, as in a spreadsheet: the column's letter, then the row's number.

    Args:
        row: Row of the cell, 0 at the top.
        col: Column of the cell, 0 at the left, at the most 25.

    Returns:
        `"a1"` for the top left, `"b1"` to its right, `"a2"` below it.
    """
    return f"{chr(ord('a') + col)}{row + 1}"


def cell_names(side: int) -> tuple[str, ...]:
    """The names of all cells of a square grid, row by row from the top left.

    Args:
        side: Cells from left to right, and from top to bottom.
    """
    return tuple(cell_name(row, col) for row in range(side) for col in range(side))
