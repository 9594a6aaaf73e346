"""Symbolic positions: places in a prompt named so that the same name fits any prompt.

Each resolves, on a `Layout`, to (row, position) pairs of an activation: the row of the batch and
the token for the language model; the number of the picture and the patch for tower and projector.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, SupportsIndex

from vlm_lens.errors import PositionError
from vlm_lens.integers import as_integer, as_integers, is_integer
from vlm_lens.layout.layout import PAD, SPECIAL, TEXT, Layout
from vlm_lens.serial import savable

Pairs = list[tuple[int, int]]


@dataclass(frozen=True)
class Position:
    """A place in a prompt, by name."""

    def resolve(self, layout: Layout, space: str = "text") -> Pairs:
        """The (row, position) pairs meant on this prompt.

        Args:
            layout: The prompt's layout.
            space: `"text"`, `"vision"` or `"projector"`: whose positions are asked.

        Raises:
            PositionError: This prompt has no such place.
        """
        if space == "text":
            return [(layout.row, p) for p in self._in_text(layout)]
        return self._in_pictures(layout, space)

    def _in_text(self, layout: Layout) -> Iterable[int]:
        raise NotImplementedError

    def _in_pictures(self, layout: Layout, space: str) -> Pairs:
        raise PositionError(
            f"{self} is a place in the text; the {space} sequence has pictures only. "
            "Use Patches(...), Images() or All()."
        )

    @property
    def in_prompt(self) -> Position | None:
        """The part of it that lies in the prompt; `None` where there is none."""
        return self

    @property
    def at_generated(self) -> bool:
        """Whether it means the tokens generated after the prompt too."""
        return False

    def __add__(self, other: Position) -> Position:
        """The places of both."""
        return Together((self, other)) if isinstance(other, Position) else NotImplemented

    def __sub__(self, other: Position) -> Position:
        """The places of this one that are not the other's."""
        return Without(self, other) if isinstance(other, Position) else NotImplemented

    def __invert__(self) -> Position:
        """Every position but these and padding."""
        return Without(All(), self)


@savable
@dataclass(frozen=True)
class Together(Position):
    """The places of several positions, each once: `Last() + Generated()`."""

    parts: tuple[Position, ...]

    def resolve(self, layout: Layout, space: str = "text") -> Pairs:
        """The places of all parts, in their order."""
        return list(dict.fromkeys(p for part in self.parts for p in part.resolve(layout, space)))

    @property
    def in_prompt(self) -> Position | None:
        """The parts that lie in the prompt."""
        inside = tuple(p for part in self.parts if (p := part.in_prompt) is not None)
        return Together(inside) if inside else None

    @property
    def at_generated(self) -> bool:
        """Whether one of the parts is."""
        return any(part.at_generated for part in self.parts)

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))


@savable
@dataclass(frozen=True)
class Without(Position):
    """The places of one position that are not another's: `All() - Images()`, or `~Images()`."""

    whole: Position
    part: Position

    def __post_init__(self):
        if self.whole.at_generated or self.part.at_generated:
            raise PositionError("Generated() is no part of a prompt, so nothing can be left of it.")

    def resolve(self, layout: Layout, space: str = "text") -> Pairs:
        """The places of the whole that are not the part's."""
        left_out = set(self.part.resolve(layout, space))
        return [pair for pair in self.whole.resolve(layout, space) if pair not in left_out]

    def __repr__(self) -> str:
        if self.whole == All():
            return f"~({self.part!r})" if isinstance(self.part, Together) else f"~{self.part!r}"
        return f"({self.whole!r} - {self.part!r})"


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

    On tower and projector points the numbers count in the sequence of each picture.
    """

    positions: tuple[int, ...]

    def __post_init__(self):
        positions = as_integers(self.positions, "A position", PositionError)
        object.__setattr__(self, "positions", positions)
        if len(set(self.positions)) < len(self.positions):
            raise PositionError(f"At{self.positions} names a position twice.")

    def _in_text(self, layout: Layout) -> Iterable[int]:
        given, shift = [self._check(p, len(layout)) for p in self.positions], layout.shifted
        for p in given:
            if p + shift >= len(layout) or layout.kinds[p + shift] == PAD:
                raise PositionError(
                    f"Position {p} is padding: this prompt stands at {layout.start - shift} to "
                    f"{layout.last - shift} of its row."
                )
        return [p + shift for p in given]

    def _in_pictures(self, layout: Layout, space: str) -> Pairs:
        pairs = []
        for row, sequence in _picture_sequences(layout, space):
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
class Patches(Position):
    """Patches of one picture: all, some rows and columns of the grid, or a box of pixels.

    Attributes:
        image: Which picture of the prompt, from 0.
        rows: Rows of the grid, as `(start, stop)`, one number or `None` for all.
        cols: Columns of the grid, likewise.
        box: `(x0, y0, x1, y1)` in pixels of the picture as given, instead of rows and columns; on a
            model that cuts pictures into tiles, every tile that sees the box counts.
        grid: Which grid `rows` and `cols` count in, on a model that cuts pictures into tiles; 0 is
            the view of the whole picture.
    """

    image: int = 0
    rows: int | tuple[int, int] | None = None
    cols: int | tuple[int, int] | None = None
    box: tuple[float, float, float, float] | None = None
    grid: int = 0

    def __post_init__(self):
        if self.box is not None and (self.rows is not None or self.cols is not None):
            raise PositionError("Patches takes rows and cols, or a box, not both.")
        object.__setattr__(self, "image", as_integer(self.image, "A picture", PositionError))
        object.__setattr__(self, "grid", as_integer(self.grid, "A grid", PositionError))
        for name in ("rows", "cols"):
            object.__setattr__(self, name, _stretch(name, getattr(self, name)))
        if self.box is not None:
            object.__setattr__(self, "box", _box(self.box))

    def _in_text(self, layout: Layout) -> Iterable[int]:
        return [p for _, p in self._in_pictures(layout, "text")]

    def _in_pictures(self, layout: Layout, space: str) -> Pairs:
        picture = layout.image[self.image].space(space)
        if self.box is not None:
            return picture.box(*self.box)
        grid = picture.grid(self.grid)
        rows, cols = _range(self.rows, grid.rows), _range(self.cols, grid.cols)
        return [(grid.row, grid.patch(r, c)) for r in rows for c in cols]


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
class Text(Position):
    """Every position of text, special tokens included if asked; no picture, no padding."""

    special: bool = False

    def _in_text(self, layout: Layout) -> Iterable[int]:
        kinds = (TEXT, SPECIAL) if self.special else (TEXT,)
        return [i for i, k in enumerate(layout.kinds) if k in kinds]


@savable
@dataclass(frozen=True)
class All(Position):
    """Every position but padding."""

    def _in_text(self, layout: Layout) -> Iterable[int]:
        return [i for i, k in enumerate(layout.kinds) if k != PAD]

    def _in_pictures(self, layout: Layout, space: str) -> Pairs:
        return [(row, p) for row, seq in _picture_sequences(layout, space) for p in seq]


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


def _stretch(name: str, given: Any) -> int | tuple[int, int] | None:
    """One row, or the first and one past the last; a list would be taken for its entries."""
    if given is None or is_integer(given):
        return None if given is None else operator.index(given)
    if not isinstance(given, tuple) or len(given) != 2:
        raise PositionError(
            f"{name} is one number or (start, stop), not {given!r}: for several that are no "
            "stretch, use one Patches(...) each."
        )
    start, stop = (as_integer(g, f"An end of {name}", PositionError) for g in given)
    return start, stop


def _box(given: Any) -> tuple[float, float, float, float]:
    try:
        x0, y0, x1, y1 = (float(v) for v in given)
    except (TypeError, ValueError):
        raise PositionError(f"box is (x0, y0, x1, y1) in pixels, not {given!r}.") from None
    if not (x0 < x1 and y0 < y1):
        raise PositionError(f"box={given} holds no pixel: give x0 < x1 and y0 < y1.")
    return x0, y0, x1, y1


def _range(chosen: int | tuple[int, int] | None, size: int) -> range:
    if chosen is None:
        return range(size)
    if isinstance(chosen, int):
        if not -size <= chosen < size:
            raise PositionError(f"There is no patch {chosen} in a grid of {size}, 0-based.")
        return range(chosen % size, chosen % size + 1)
    start, stop = chosen
    if not 0 <= start < stop <= size:
        raise PositionError(
            f"({start}, {stop}) is no range of a grid of {size}: give 0 <= start < stop."
        )
    return range(start, stop)


def _picture_sequences(layout: Layout, space: str) -> list[tuple[int, tuple[int, ...]]]:
    if not layout.image:
        raise PositionError("This prompt has no picture.")
    return [sequence for image in layout.image for sequence in image.space(space).sequences]
