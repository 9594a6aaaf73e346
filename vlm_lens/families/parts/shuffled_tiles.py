"""Pictures cut into tiles, a view of the whole after them, and patches merged by pixel shuffle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.picture import Picture, grid
from vlm_lens.families.parts.pixels import Size, stretch_map, window_map
from vlm_lens.layout.geometry import PatchGrid, PixelMap
from vlm_lens.layout.pictures import ImageSpace


@dataclass(frozen=True)
class Frame:
    """The frames that a tower reads, all alike.

    Attributes:
        size: Width and height in pixels.
        patch: Width and height of a patch.
        merge: Patches along the side of the block that becomes one position of the text.
        n_class_tokens: Positions of the tower before the first patch.
    """

    size: Size
    patch: Size
    merge: int
    n_class_tokens: int = 0

    @property
    def patches(self) -> tuple[int, int]:
        """Rows and columns of patches in the tower."""
        return self.size[1] // self.patch[1], self.size[0] // self.patch[0]

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of positions in the text."""
        rows, cols = self.patches
        return rows // self.merge, cols // self.merge

    @property
    def n_tokens(self) -> int:
        """Image tokens of one frame."""
        rows, cols = self.cells
        return rows * cols


def tiled_pictures(
    batch: PictureBatch,
    frame: Frame,
    n_frames: Sequence[int],
    tilings: Sequence[tuple[int, int] | None],
) -> list[Picture]:
    """The pictures of a batch, each as tiles and a view of the whole.

    Args:
        batch: The batch.
        frame: What the tower's frames are like.
        n_frames: Frames of each picture: tiles and whole.
        tilings: Rows and columns of each picture's tiles; where they are not known, only the whole
            has a grid.
    """
    pictures, first = [], 0
    for number, (n, tiling) in enumerate(zip(n_frames, tilings, strict=True)):
        pictures.append(_tiles_and_whole(first, n, frame, batch.size(number), tiling))
        first += n
    return pictures


def _tiles_and_whole(
    first: int,
    n_frames: int,
    frame: Frame,
    picture: Size | None,
    tiling: tuple[int, int] | None,
) -> Picture:
    """A picture as tiles, row by row, and a view of the whole after them, if there are tiles.

    In the text the tiles are one grid, as they make up the picture; tower and projector have a grid
    for each.

    Args:
        first: The number of its first frame on the tower's first axis.
        n_frames: Its frames: tiles and whole.
        frame: What they are like.
        picture: Width and height of the picture as given; without it, pixels are those of the
            frames.
        tiling: Rows and columns of tiles; where it is not known, only the whole has a grid.
    """
    n_tiles = n_frames - 1
    down, across = tiling if tiling and n_tiles else (0, 0)
    large = (across * frame.size[0], down * frame.size[1]) if across else frame.size
    mosaic = stretch_map(picture or large, large)
    whole = stretch_map(picture or large, frame.size)
    corners = [(c * frame.size[0], r * frame.size[1]) for r in range(down) for c in range(across)]
    maps = {n_tiles: whole} | {
        i: window_map(mosaic, corner, frame.size) for i, corner in enumerate(corners)
    }
    text = grid(*frame.cells, n_tiles * frame.n_tokens, 0, whole)
    if corners:
        text += (_mosaic(frame, down, across, mosaic),)
    return Picture(
        n_frames * frame.n_tokens,
        text,
        _in_frames(first, n_frames, maps, frame.patches, frame.n_class_tokens),
        _in_frames(first, n_frames, maps, frame.cells, 0),
    )


def _in_frames(
    first: int, n_frames: int, maps: dict[int, PixelMap], shape: Sequence[int], before: int
) -> ImageSpace:
    rows, cols = shape
    grids = [g for i, m in maps.items() for g in grid(rows, cols, before, first + i, m)]
    positions = tuple(range(before + rows * cols))
    return ImageSpace(tuple(grids), tuple((first + i, positions) for i in range(n_frames)))


def _mosaic(frame: Frame, down: int, across: int, pixels: PixelMap) -> PatchGrid:
    """The tiles' positions, in the picture's order."""
    rows, cols = frame.cells
    positions = tuple(
        ((r // rows) * across + c // cols) * rows * cols + (r % rows) * cols + c % cols
        for r in range(down * rows)
        for c in range(across * cols)
    )
    return PatchGrid(down * rows, across * cols, positions, 0, pixels)
