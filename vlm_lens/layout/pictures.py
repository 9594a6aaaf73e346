"""One picture, or the frames of one video, in the sequences of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_lens.errors import PositionError, refuse_attribute
from vlm_lens.layout.geometry import Box, PatchGrid, as_ranges
from vlm_lens.serial import savable

if TYPE_CHECKING:
    import numpy as np


@savable
@dataclass(frozen=True)
class ImageSpace:
    """One picture in one sequence: the language model's, the tower's or the projector's.

    Attributes:
        grids: Its patches; one grid for most families, a view of the whole picture and then tiles
            for others, none where a position holds no single patch.
        sequences: (row, positions) of everything that belongs to the picture, class tokens and
            separators included; the row counts on the activation's first axis.
        why_no_grid: Why there is no grid, if there is none.
    """

    grids: tuple[PatchGrid, ...] = ()
    sequences: tuple[tuple[int, tuple[int, ...]], ...] = ()
    why_no_grid: str = ""

    def __str__(self) -> str:
        grids = [f"{g.rows} x {g.cols} patches at {as_ranges(g.positions)}" for g in self.grids]
        places = [f"row {row}, {as_ranges(at)}" for row, at in self.sequences]
        return ", ".join(grids or places)

    def grid(self, number: int = 0) -> PatchGrid:
        """One of the grids, the view of the whole picture first.

        Raises:
            PositionError: There is no such grid.
        """
        if not self.grids:
            reason = self.why_no_grid or "no position here holds a single patch of the picture"
            raise PositionError(f"{reason}; address the whole picture with Images().")
        try:
            return self.grids[number]
        except IndexError:
            raise PositionError(
                f"This picture has {len(self.grids)} grid(s) of patches; grid {number} was asked."
            ) from None

    def box(self, x0: float, y0: float, x1: float, y1: float) -> list[tuple[int, int]]:
        """(row, position) of every patch, in any grid, that overlaps a box of pixels.

        Raises:
            PositionError: No grid sees anything of the box.
        """
        self.grid()
        found, errors = [], []
        for grid in self.grids:
            try:
                found += [(grid.row, p) for p in grid.box(x0, y0, x1, y1)]
            except PositionError as error:
                errors.append(error)
        if not found:
            raise errors[0]
        return found

    def mask(self, mask: np.ndarray, min_share: float = 0.0) -> list[tuple[int, int]]:
        """(row, position) of every patch, in any grid, of which a mask covers enough.

        Args:
            mask: `[height, width]` of the picture as given, true inside.
            min_share: The least share of a patch; 0 for any part of it.

        Raises:
            PositionError: A mask of another size than the picture, or one that covers so much of
                no patch.
        """
        self.grid()
        found, most = [], 0.0
        for grid in self.grids:
            shares = grid.shares(mask).ravel()
            most = max(most, float(shares.max()))
            least = max(min_share - 1e-9, 1e-9)
            found += [
                (grid.row, p)
                for p, share in zip(grid.positions, shares, strict=True)
                if share >= least
            ]
        if not found:
            seen = ", ".join(f"{v:.0f}" for v in self.grids[0].pixels_of.seen)
            raise PositionError(
                f"The mask covers at least {min_share:.0%} of no patch: at most {most:.1%} of one. "
                f"Of this picture the model sees the box ({seen})."
            )
        return found

    def pixels(self, position: int, row: int | None = None) -> Box:
        """The box of pixels of the patch at a position.

        Raises:
            PositionError: No patch stands there.
        """
        self.grid()
        for grid in self.grids:
            if position in grid.positions and row in (None, grid.row):
                return grid.pixels(position)
        return self.grids[0].pixels(position)  # raises, and says where patches stand


class PlacesInText:
    """What a picture or a frame has of the language model's positions."""

    text: ImageSpace

    @property
    def positions(self) -> tuple[int, ...]:
        """All its positions in the language model."""
        return tuple(p for _, positions in self.text.sequences for p in positions)

    @property
    def grid(self) -> PatchGrid | None:
        """Its patches in the language model; `None` where a position has no single patch."""
        return self.text.grids[0] if self.text.grids else None

    def patch(self, row: int, col: int) -> int:
        """Position in the language model of one patch, counted from the top left."""
        return self.text.grid().patch(row, col)

    def box(self, x0: float, y0: float, x1: float, y1: float) -> list[int]:
        """Positions in the language model of the patches that overlap a box of pixels."""
        return [position for _, position in self.text.box(x0, y0, x1, y1)]

    def pixels(self, position: int) -> Box:
        """The box of pixels, in the picture as given, of a position in the language model."""
        return self.text.pixels(position)


_HABITS = {
    **{name: f"it is image.grid.{name}" for name in ("rows", "cols")},
    "shape": "image.grid.rows and image.grid.cols count its patches",
    "patches": "image.positions are their positions, image.patch(row, col) one of them",
    "n_patches": "it is len(image.grid.positions)",
    "boxes": "image.pixels(position) is the box of one patch",
    "size": "image.grid.pixels_of.picture is the size of the picture in pixels",
    "width": "image.grid.pixels_of.picture is the size of the picture in pixels",
    "height": "image.grid.pixels_of.picture is the size of the picture in pixels",
}  # what users guess


@savable
@dataclass(frozen=True)
class ImageLayout(PlacesInText):
    """One picture of a prompt and where its patches stand.

    Attributes:
        index: Which picture of the prompt, from 0.
        text: It in the language model's sequence.
        vision: It in the tower's.
        projector: It in the projector's output.
    """

    index: int
    text: ImageSpace
    vision: ImageSpace = ImageSpace()
    projector: ImageSpace = ImageSpace()

    if not TYPE_CHECKING:  # a type checker would take any name for known

        def __getattr__(self, name: str) -> Any:
            refuse_attribute(type(self), name, _HABITS)

    def __repr__(self) -> str:
        spaces = {"text": self.text, "vision": self.vision, "projector": self.projector}
        told = "; ".join(f"{name}: {space}" for name, space in spaces.items() if space.sequences)
        return f"ImageLayout({self.index}; {told})"

    def space(self, name: str) -> ImageSpace:
        """The picture in `"text"`, `"vision"` or `"projector"`."""
        return {"text": self.text, "vision": self.vision, "projector": self.projector}[name]


class PicturesOfPrompt(tuple[ImageLayout, ...]):
    """The pictures of a prompt."""

    def __getitem__(self, index):
        try:
            return tuple.__getitem__(self, index)
        except IndexError:
            count = "no picture" if not self else f"{len(self)} picture{'s' * (len(self) > 1)}"
            raise PositionError(f"This prompt has {count}; image {index} was asked.") from None


@savable
@dataclass(frozen=True)
class FrameLayout(PlacesInText):
    """Positions of a video that stand for one moment: of one frame, or of several merged in time.

    Attributes:
        index: Which moment of the video, from 0.
        merged: The frames, as given, that its positions were made of; several where the model
            merges frames in time.
        text: It in the language model's sequence.
        seconds: From when to when, where it is known how many frames a second takes.
        vision: It in the tower's sequence, where that is described.
        projector: It in the projector's output, likewise.
    """

    index: int
    merged: tuple[int, ...]
    text: ImageSpace
    seconds: tuple[float, float] | None = None
    vision: ImageSpace = ImageSpace()
    projector: ImageSpace = ImageSpace()


@savable
@dataclass(frozen=True)
class VideoLayout:
    """One video of a prompt.

    Attributes:
        index: Which video of the prompt, from 0.
        frames: Its moments, in order.
        rest: Its positions that stand for no moment: separators.
    """

    index: int
    frames: tuple[FrameLayout, ...]
    rest: tuple[int, ...] = ()

    @property
    def n_frames(self) -> int:
        """Frames as given to the model, before any are merged."""
        return max((t for f in self.frames for t in f.merged), default=-1) + 1

    @property
    def positions(self) -> tuple[int, ...]:
        """All its positions in the language model."""
        return tuple(sorted([*(p for f in self.frames for p in f.positions), *self.rest]))

    def frame(self, number: int) -> FrameLayout:
        """The positions that hold a frame, counted from 0 as given; negative from the end.

        Where the model merges frames in time, `frame(0)` and `frame(1)` are the same positions, and
        `frame(0).merged` says so.

        Raises:
            PositionError: The video has no such frame.
        """
        wanted = number + self.n_frames if number < 0 else number
        for frame in self.frames:
            if wanted in frame.merged:
                return frame
        raise PositionError(
            f"Video {self.index} has {self.n_frames} frames; frame {number} was asked."
        )

    def at(self, seconds: float) -> FrameLayout:
        """The positions that hold a moment, in seconds from the beginning.

        Raises:
            PositionError: It is not known how many frames a second takes, or the video is shorter.
        """
        spans = [f.seconds for f in self.frames if f.seconds is not None]
        if len(spans) < len(self.frames):
            raise PositionError(
                "It is not known how many frames of this video a second takes: give it, "
                "vlm.prompt(text, videos=[...], fps=...)."
            )
        for frame, (begin, end) in zip(self.frames, spans, strict=True):
            if begin <= seconds < end:
                return frame
        last = spans[-1][1] if spans else 0
        raise PositionError(
            f"Video {self.index} is {last:g} seconds long; second {seconds:g} was asked."
        )


class VideosOfPrompt(tuple[VideoLayout, ...]):
    """The videos of a prompt."""

    def __getitem__(self, index):
        """One video, by its number.

        Raises:
            PositionError: There is no such video.
        """
        try:
            return tuple.__getitem__(self, index)
        except IndexError:
            count = f"{len(self) or 'no'} video{'s' * (len(self) != 1)}"
            raise PositionError(f"This prompt has {count}; video {index} was asked.") from None
