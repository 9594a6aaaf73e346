"""Symbolic positions: places in a prompt named so that the same name fits any prompt.

Each resolves, on a `Layout`, to (row, position) pairs of an activation: the row of the batch and
the token for the language model; the number of the picture and the patch for tower and projector.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import SupportsIndex

from vlm_lens.errors import PositionError
from vlm_lens.integers import as_integer, as_integers
from vlm_lens.layout.kinds import PAD, SPECIAL, TEXT
from vlm_lens.layout.layout import Layout
from vlm_lens.layout.patches import Patches
from vlm_lens.layout.position import All, Pairs, Position, Together, Without, picture_sequences
from vlm_lens.serial import savable

__all__ = [
    "All",
    "At",
    "Find",
    "Generated",
    "Images",
    "Last",
    "Pairs",
    "Patches",
    "Position",
    "Span",
    "Text",
    "Together",
    "Without",
    "as_position",
]


@savable
@dataclass(frozen=True)
class Last(Position):
    """The last position of the prompt: where the next token is predicted."""

    def _in_text(self, layout: Layout) -> Iterable[int]:
        return [layout.last]


@savable
@dataclass(frozen=True)
class Find(Position):
    """The n-th occurrence of a token or string; see `Layout.find`."""

    token: str | int
    n: int = -1

    def __post_init__(self):
        if not isinstance(self.token, str):
            token = as_integer(self.token, "A token's id", PositionError)
            object.__setattr__(self, "token", token)
        object.__setattr__(self, "n", as_integer(self.n, "An occurrence", PositionError))

    def _in_text(self, layout: Layout) -> Iterable[int]:
        return [layout.find(self.token, self.n)]


@savable
@dataclass(frozen=True)
class Span(Position):
    """All tokens of a stretch of text; see `Layout.span`."""

    text: str
    n: int | None = None

    def __post_init__(self):
        if not isinstance(self.text, str):
            raise PositionError(f"A span is a stretch of text, not {self.text!r:.60}.")
        if self.n is not None:
            object.__setattr__(self, "n", as_integer(self.n, "An occurrence", PositionError))

    def _in_text(self, layout: Layout) -> Iterable[int]:
        return layout.span(self.text, self.n)


@savable
@dataclass(frozen=True)
class At(Position):
    """Positions by number, from 0; negative counts from the end of the prompt.

    In a Prompt of several rows the numbers are those of its tensors, padding counted. Where prompts
    are given as a list (to run, sweep, generate, for vectors) they count from each prompt's own
    first token, whatever runs beside it. On tower and projector points the numbers count in the
    sequence of each picture.
    """

    positions: tuple[int, ...]

    def __post_init__(self):
        positions = as_integers(self.positions, "A position", PositionError)
        object.__setattr__(self, "positions", positions)
        if len(set(self.positions)) < len(self.positions):
            raise PositionError(f"At{self.positions} names a position twice.")

    def _in_text(self, layout: Layout) -> Iterable[int]:
        shift = layout.shifted
        length = layout.last + 1 - shift if layout.alone else len(layout)
        given = [self._check(p, length) for p in self.positions]
        for p in given:
            if p + shift >= len(layout) or layout.kinds[p + shift] == PAD:
                raise PositionError(
                    f"Position {p} is padding: this prompt stands at {layout.start - shift} to "
                    f"{layout.last - shift} of its row."
                )
        return [p + shift for p in given]

    def _in_pictures(self, layout: Layout, space: str) -> Pairs:
        pairs = []
        for row, sequence in picture_sequences(layout, space):
            pairs += [(row, sequence[self._check(p, len(sequence))]) for p in self.positions]
        return pairs

    def _check(self, position: int, length: int) -> int:
        if not -length <= position < length:
            raise PositionError(
                f"Position {position} is not in this prompt: its sequence has {length} positions."
            )
        return position % length


@savable
@dataclass(frozen=True)
class Images(Position):
    """All positions of every picture, or of one: `Images(0)`.

    On tower points the class token is included.
    """

    image: int | None = None

    def __post_init__(self):
        if self.image is not None:
            object.__setattr__(self, "image", as_integer(self.image, "A picture", PositionError))

    def _chosen(self, layout: Layout):
        if not layout.image:
            raise PositionError("This prompt has no picture.")
        return layout.image if self.image is None else [layout.image[self.image]]

    def _in_text(self, layout: Layout) -> Iterable[int]:
        return [p for image in self._chosen(layout) for p in image.positions]

    def _in_pictures(self, layout: Layout, space: str) -> Pairs:
        sequences = [s for image in self._chosen(layout) for s in image.space(space).sequences]
        return [(row, p) for row, sequence in sequences for p in sequence]


@savable
@dataclass(frozen=True)
class Frames(Position):
    """All positions of every video, of one, or of one frame of it: `Frames(0, frame=3)`.

    Frames are counted as given; where the model merges some in time, they stand together.
    """

    video: int | None = None
    frame: int | None = None

    def _in_text(self, layout: Layout) -> Iterable[int]:
        if not layout.video:
            raise PositionError("This prompt has no video.")
        videos = layout.video if self.video is None else [layout.video[self.video]]
        if self.frame is None:
            return [p for video in videos for p in video.positions]
        return [p for video in videos for p in video.frame(self.frame).positions]

    def _in_pictures(self, layout: Layout, space: str) -> Pairs:
        if not layout.video:
            raise PositionError("This prompt has no video.")
        videos = layout.video if self.video is None else [layout.video[self.video]]
        frames = [
            frame for video in videos
            for frame in (video.frames if self.frame is None else [video.frame(self.frame)])
        ]  # fmt: skip
        found = [
            (row, position)
            for frame in frames
            for row, positions in getattr(frame, space).sequences
            for position in positions
        ]
        if not found:
            raise PositionError(
                f"Where the frames of a video stand in the {space}'s sequence is not described: "
                "act on the language model's points."
            )
        return found


@savable
@dataclass(frozen=True)
class Text(Position):
    """Every position of text, special tokens included if asked; no picture, no padding."""

    special: bool = False

    def _in_text(self, layout: Layout) -> Iterable[int]:
        kinds = (TEXT, SPECIAL) if self.special else (TEXT,)
        return [i for i, k in enumerate(layout.kinds) if k in kinds]


@savable
@dataclass(frozen=True)
class Generated(Position):
    """Every token generated after the prompt: acts at each new step, never in the prompt."""

    @property
    def in_prompt(self) -> Position | None:
        """Nothing of it lies in the prompt."""
        return None

    @property
    def at_generated(self) -> bool:
        """It is what this means."""
        return True

    def resolve(self, layout: Layout, space: str = "text") -> Pairs:
        """No place in the prompt: engines apply it at each step of a generation."""
        if space != "text":
            raise PositionError(
                "Generated() means tokens of the language model; pictures have none."
            )
        return []


def as_position(at: Position | SupportsIndex | Iterable[SupportsIndex]) -> Position:
    """A number or a list of numbers as `At(...)`; a `Position` unchanged."""
    if isinstance(at, Position):
        return at
    try:
        return At(as_integers(at, "A position", PositionError))
    except PositionError as error:
        if "twice" in str(error):
            raise
        raise PositionError(
            f"{at!r} is not a position: use Last(), Find(...), Span(...), Patches(...), Images(), "
            "Text(), All(), Generated(), a number or a list of numbers."
        ) from None
