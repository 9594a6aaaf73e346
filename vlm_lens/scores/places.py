"""What stands at a position: token, kind, patch and pixels, for tables and figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlm_lens.layout.geometry import Box, PatchGrid
from vlm_lens.layout.kinds import Kind
from vlm_lens.layout.layout import Layout


@dataclass(frozen=True)
class Place:
    """One position of a sequence.

    Attributes:
        row: Index on the activation's first axis.
        position: The position.
        kind: `"text"`, `"special"`, `"pad"`, or `"image 0"`, `"image 1"`, ...
        token: Its text; `None` in tower and projector, and where the text is not known.
        patch: Row and column of the patch that stands there, in its own grid.
        pixels: That patch's box, in pixels of the picture as given.
    """

    row: int
    position: int
    kind: Kind
    token: str | None = None
    patch: tuple[int, int] | None = None
    pixels: Box | None = None

    @property
    def label(self) -> str:
        """A short name: the token, or the patch."""
        if self.patch is not None:
            return f"{self.kind} ({self.patch[0]}, {self.patch[1]})"
        return repr(self.token) if self.token is not None else self.kind


@dataclass(frozen=True)
class GridOf:
    """A grid of patches and the picture that it belongs to.

    Attributes:
        image: Which picture of the prompt.
        number: Which of its grids.
        grid: The grid.
    """

    image: int
    number: int
    grid: PatchGrid


def grids(layout: Layout, space: str) -> Iterator[GridOf]:
    """All grids of a prompt's pictures in a space: `"text"`, `"encoder"`, `"vision"`, ..."""
    layout, space = layout.counted(space)
    for image in layout.images:
        for number, grid in enumerate(image.space(space).grids):
            yield GridOf(image.index, number, grid)


def sequence(layout: Layout, space: str) -> list[tuple[int, int]]:
    """(row, position) of everything in a space: the row's positions, or those of its pictures."""
    layout, space = layout.counted(space)
    if space == "text":
        return [(layout.row, p) for p in range(len(layout))]
    return [
        (row, p)
        for image in layout.images
        for row, positions in image.space(space).sequences
        for p in positions
    ]


def places(layout: Layout, space: str, pairs: Sequence[tuple[int, int]]) -> list[Place]:
    """What stands at each (row, position)."""
    layout, space = layout.counted(space)
    patches: dict[tuple[int, int], tuple[tuple[int, int], Box]] = {}
    for found in grids(layout, space):
        grid = found.grid
        rows, cols = grid.spans
        for i, p in enumerate(grid.positions):
            r, c = divmod(i, grid.cols)
            box = grid.pixels_of.to_picture((cols[c][0], rows[r][0], cols[c][1], rows[r][1]))
            patches[grid.row, p] = (r, c), box
    owner = {
        (row, p): Kind(f"image {image.index}")
        for image in layout.images
        for row, positions in image.space(space).sequences
        for p in positions
    }
    found = []
    for row, p in pairs:
        patch, pixels = patches.get((row, p), (None, None))
        if space == "text":
            kind, token = layout.kinds[p], layout.strings[p] if layout.strings else None
        else:
            kind, token = owner.get((row, p), Kind(space)), None
        found.append(Place(row, p, kind, token, patch, pixels))
    return found
