"""Patches and pixels: which part of a picture, as the user gave it, a patch has seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float

from vlm_lens.errors import PositionError
from vlm_lens.serial import savable

Box = tuple[float, float, float, float]
Spans = tuple[tuple[float, float], ...]
_EPS = 1e-6


@savable
@dataclass(frozen=True)
class PixelMap:
    """How a processor maps the user's picture to the frame that is cut into patches.

    `frame = picture * scale + offset`, per axis; the offset is negative where the frame is a crop.

    Attributes:
        picture: Width and height of the picture as given.
        frame: Width and height of what the model sees, in pixels.
        scale: Frame pixels for one pixel of the picture, per axis.
        offset: Where the picture's top left corner lies in the frame.
    """

    picture: tuple[int, int]
    frame: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)

    def to_frame(self, box: Box) -> Box:
        """A box in pixels of the picture -> pixels of the frame."""
        (sx, sy), (ox, oy) = self.scale, self.offset
        return box[0] * sx + ox, box[1] * sy + oy, box[2] * sx + ox, box[3] * sy + oy

    def to_picture(self, box: Box) -> Box:
        """A box in pixels of the frame -> pixels of the picture, cut to the picture.

        Of a box that lies in padding alone nothing is left: it comes back without area.
        """
        (sx, sy), (ox, oy) = self.scale, self.offset
        w, h = self.picture
        x0, x1 = ((v - ox) / sx for v in (box[0], box[2]))
        y0, y1 = ((v - oy) / sy for v in (box[1], box[3]))
        x0, x1 = (min(max(v, 0.0), float(w)) for v in (x0, x1))
        y0, y1 = (min(max(v, 0.0), float(h)) for v in (y0, y1))
        return x0, y0, x1, y1

    @property
    def seen(self) -> Box:
        """The part of the picture that the model sees, in pixels of the picture."""
        return self.to_picture((0, 0, *self.frame))


def as_ranges(numbers: Iterable[int], most: int = 6) -> str:
    """Numbers as people write them: `3..18, 20`; of many ranges the first ones."""
    ranges: list[list[int]] = []
    for n in numbers:
        if ranges and n == ranges[-1][1] + 1:
            ranges[-1][1] = n
        else:
            ranges.append([n, n])
    shown = [f"{a}..{b}" if a < b else f"{a}" for a, b in ranges[:most]]
    return ", ".join([*shown, "..."] if len(ranges) > most else shown)


@savable
@dataclass(frozen=True)
class PatchGrid:
    """A grid of patches, and at which positions of a sequence they stand.

    Attributes:
        rows: Number of patches from top to bottom.
        cols: Number of patches from left to right.
        positions: `rows * cols` positions, row by row.
        row: Index on the activation's first axis: the prompt's row in a batch for the language
            model, the picture's number in the whole batch for tower and projector.
        pixels_of: How the picture became the frame that the grid covers.
        cuts: Where each row and each column begins and ends in the frame, where they do not divide
            it evenly.
    """

    rows: int
    cols: int
    positions: tuple[int, ...]
    row: int
    pixels_of: PixelMap
    cuts: tuple[Spans, Spans] | None = None

    def __repr__(self) -> str:
        width, height = self.pixels_of.picture
        return (
            f"PatchGrid({self.rows} x {self.cols} patches at {as_ranges(self.positions)}, "
            f"row {self.row}; of a {width} x {height} picture)"
        )

    @property
    def spans(self) -> tuple[Spans, Spans]:
        """Where each row and each column begins and ends, in pixels of the frame."""
        if self.cuts is not None:
            return self.cuts
        width, height = self.pixels_of.frame
        w, h = width / self.cols, height / self.rows
        rows = tuple((r * h, (r + 1) * h) for r in range(self.rows))
        return rows, tuple((c * w, (c + 1) * w) for c in range(self.cols))

    def patch(self, row: int, col: int) -> int:
        """The position of one patch, counted from the top left; negative counts from the end."""
        if not (-self.rows <= row < self.rows and -self.cols <= col < self.cols):
            raise PositionError(
                f"There is no patch ({row}, {col}): the grid has {self.rows} rows "
                f"and {self.cols} columns."
            )
        return self.positions[(row % self.rows) * self.cols + col % self.cols]

    def box(self, x0: float, y0: float, x1: float, y1: float) -> list[int]:
        """Positions of the patches that overlap a box, in pixels of the picture as given.

        Raises:
            PositionError: An empty box, or one that the model does not see (outside the
                picture, or cut away by the processor's crop).
        """
        if not (x0 < x1 and y0 < y1):
            raise PositionError(f"The box {(x0, y0, x1, y1)} is empty: give x0 < x1 and y0 < y1.")
        fx0, fy0, fx1, fy1 = self.pixels_of.to_frame((x0, y0, x1, y1))
        rows, cols = self.spans
        inside = [
            self.patch(r, c) for r, c in product(_overlap(rows, fy0, fy1), _overlap(cols, fx0, fx1))
        ]
        if not inside:
            seen = ", ".join(f"{v:.0f}" for v in self.pixels_of.seen)
            raise PositionError(
                f"The box {(x0, y0, x1, y1)} covers nothing that the model sees: of this "
                f"{self.pixels_of.picture[0]} x {self.pixels_of.picture[1]} picture it sees "
                f"the box ({seen})."
            )
        return inside

    def shares(self, mask: np.ndarray) -> Float[np.ndarray, "rows cols"]:
        """The share of each patch that a mask covers.

        Exact: pixels of which a patch sees a part count with that part. What of a patch lies in
        padding is covered by no mask.

        Args:
            mask: `[height, width]` of the picture as given, true inside.

        Raises:
            PositionError: The mask is of another size than the picture.
        """
        width, height = self.pixels_of.picture
        if mask.shape != (height, width):
            raise PositionError(
                f"The mask is {mask.shape[1]} x {mask.shape[0]} pixels and the picture "
                f"{width} x {height}: give a mask of the picture as it was given."
            )
        before = np.zeros((height + 1, width + 1))  # covered area above and left of each corner
        before[1:, 1:] = mask.cumsum(0, dtype=np.float64).cumsum(1)
        (sx, sy), (ox, oy) = self.pixels_of.scale, self.pixels_of.offset
        rows, cols = (np.array(spans) for spans in self.spans)
        inside = _along(_along(before, (rows - oy) / sy).T, (cols - ox) / sx).T
        sizes = np.outer(np.diff(rows).ravel() / sy, np.diff(cols).ravel() / sx)
        return inside / sizes

    def cell(self, position: int) -> tuple[int, int]:
        """Row and column of the patch at a position.

        Raises:
            PositionError: No patch stands there.
        """
        try:
            return divmod(self.positions.index(position), self.cols)
        except ValueError:
            raise PositionError(
                f"Position {position} holds no patch of this picture; its patches stand at "
                f"{self.positions[0]}..{self.positions[-1]}."
            ) from None

    def pixels(self, position: int) -> Box:
        """The box `(x0, y0, x1, y1)` of the patch at a position, in pixels of the picture."""
        row, col = self.cell(position)
        rows, cols = self.spans
        (y0, y1), (x0, x1) = rows[row], cols[col]
        return self.pixels_of.to_picture((x0, y0, x1, y1))


def _along(before: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Differences of running sums between the ends of spans, along the first axis."""
    ends = spans.clip(0, len(before) - 1)
    whole = np.minimum(ends.astype(int), len(before) - 2)
    part = (ends - whole)[..., None]
    at_ends = before[whole] * (1 - part) + before[whole + 1] * part
    return at_ends[:, 1] - at_ends[:, 0]


def _overlap(spans: Spans, start: float, end: float) -> list[int]:
    return [i for i, (a, b) in enumerate(spans) if min(end, b) - max(start, a) > _EPS * (b - a)]
