"""A place in a prompt, by name; sums, differences and complements of places."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vlm_lens.errors import PositionError
from vlm_lens.keywords import Answering
from vlm_lens.layout.kinds import PAD
from vlm_lens.layout.layout import Layout
from vlm_lens.serial import savable

Pairs = list[tuple[int, int]]


@dataclass(frozen=True)
class Position(Answering):
    """A place in a prompt, by name."""

    def resolve(self, layout: Layout, space: str = "text") -> Pairs:
        """The (row, position) pairs meant on this prompt.

        Args:
            layout: The prompt's layout.
            space: `"text"`, `"encoder"`, `"vision"` or `"projector"`: whose positions are asked.

        Raises:
            PositionError: This prompt has no such place.
        """
        layout, space = layout.counted(space)
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
class All(Position):
    """Every position but padding."""

    def _in_text(self, layout: Layout) -> Iterable[int]:
        return [i for i, k in enumerate(layout.kinds) if k != PAD]

    def _in_pictures(self, layout: Layout, space: str) -> Pairs:
        return [(row, p) for row, seq in picture_sequences(layout, space) for p in seq]


def picture_sequences(layout: Layout, space: str) -> list[tuple[int, tuple[int, ...]]]:
    """Row and positions of each picture's sequence in tower or projector.

    Raises:
        PositionError: The prompt has no picture.
    """
    if not layout.image:
        raise PositionError("This prompt has no picture.")
    return [sequence for image in layout.image for sequence in image.space(space).sequences]
