"""Positions that are known by number in each space."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vlm_lens.layout.layout import Layout
from vlm_lens.layout.positions import Position
from vlm_lens.serial import savable

Cell = tuple[int, int]  # row of an activation's first axis, position


@savable
@dataclass(frozen=True)
class Cells(Position):
    """Cells of one prompt, by number; on another prompt they mean nothing.

    Attributes:
        cells: (space, cells) for each of `"text"`, `"vision"` and `"projector"` that has any.
    """

    cells: tuple[tuple[str, tuple[Cell, ...]], ...]

    @classmethod
    def of(cls, cells: Mapping[str, Iterable[Cell]]) -> Cells:
        """From a mapping of spaces to cells."""
        return cls(tuple((space, tuple(mine)) for space, mine in cells.items()))

    def resolve(self, layout: Layout, space: str = "text") -> list[Cell]:
        """Those of a space."""
        return list(dict(self.cells).get(space, ()))

    def __repr__(self) -> str:
        shown = (
            f"{space} {', '.join(str(p) for _, p in mine[:8])}" + ", ..." * (len(mine) > 8)
            for space, mine in self.cells
            if mine
        )
        return f"Cells({'; '.join(shown)})"
