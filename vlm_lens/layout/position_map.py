"""Which position of one prompt stands for which position of another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby

from vlm_lens.errors import PositionError
from vlm_lens.layout.cells import Cell
from vlm_lens.layout.kinds import PAD, SPECIAL, TEXT
from vlm_lens.layout.layout import Layout
from vlm_lens.layout.pictures import ImageLayout
from vlm_lens.layout.positions import Position
from vlm_lens.serial import savable

Stretch = list[int]  # positions that follow each other, of text or of one picture


@savable
@dataclass(frozen=True)
class PositionMap:
    """The positions of two prompts that have counterparts in each other; see `position_map`.

    Attributes:
        clean: The layout of the clean prompt, on which positions are named.
        corrupt: That of the corrupt one.
        text: (clean, corrupt) positions in the language model, in order.
    """

    clean: Layout
    corrupt: Layout
    text: tuple[tuple[int, int], ...]

    @property
    def is_whole(self) -> bool:
        """Whether every position of both but padding has a counterpart."""
        return len(self.text) == len(_real(self.clean)) == len(_real(self.corrupt))

    def cells(self, space: str = "text") -> dict[Cell, Cell]:
        """(row, position) of the clean prompt's activation -> of the corrupt one's, in order.

        Args:
            space: `"text"`, `"encoder"`, `"vision"` or `"projector"`: whose positions are asked.

        Raises:
            PositionError: The pictures have other numbers of patches there.
        """
        if space == "encoder":
            return position_map(
                *(one.counted(space)[0] for one in (self.clean, self.corrupt))
            ).cells()
        if space == "text":
            return {(self.clean.row, a): (self.corrupt.row, b) for a, b in self.text}
        found: dict[Cell, Cell] = {}
        for one, two in zip(self.clean.images, self.corrupt.images, strict=True):
            _check_alike(one, two, space)
            sequences = (image.space(space).sequences for image in (one, two))
            for (row, mine), (other, theirs) in zip(*sequences, strict=True):
                found.update(zip(_of(row, mine), _of(other, theirs), strict=True))
        return found

    def resolve(self, at: Position, space: str = "text") -> dict[Cell, Cell]:
        """The cells that a position means on the clean prompt, with their counterparts.

        Those without a counterpart are left out; `lost` gives them.

        Raises:
            PositionError: The clean prompt has no such place, or none of it has a counterpart.
        """
        cells, asked = self.cells(space), at.resolve(self.clean, space)
        found = {cell: cells[cell] for cell in asked if cell in cells}
        if asked and not found:
            raise PositionError(
                f"Nothing of {at} has a counterpart in the corrupt prompt, whose text is split "
                f"into other tokens there: {self!r}"
            )
        return found

    def lost(self, at: Position, space: str = "text") -> list[Cell]:
        """The cells that a position means on the clean prompt, and that have no counterpart."""
        cells = self.cells(space)
        return [cell for cell in at.resolve(self.clean, space) if cell not in cells]

    def flipped(self) -> PositionMap:
        """The same, from the corrupt prompt to the clean one."""
        return PositionMap(self.corrupt, self.clean, tuple((b, a) for a, b in self.text))

    def __repr__(self) -> str:
        if self.is_whole:
            return f"PositionMap({len(self.text)} positions, all have counterparts)"
        alone = [
            f"{name} {[layout.strings[p] if layout.strings else p for p in missing]}"
            for name, layout, missing in (
                ("clean", self.clean, _missing(self.clean, {a for a, _ in self.text})),
                ("corrupt", self.corrupt, _missing(self.corrupt, {b for _, b in self.text})),
            )
            if missing
        ]
        return f"PositionMap({len(self.text)} positions; without counterpart: {'; '.join(alone)})"


def position_map(clean: Layout, corrupt: Layout) -> PositionMap:
    """Finds which position of a clean prompt stands for which of a corrupt one.

    Prompts of the same shape (text and pictures of the same lengths in the same order) correspond
    position by position. Otherwise

    - pictures correspond patch by patch, wherever they stand: the first to the first, and so on;
    - the texts between them correspond token by token where they are the same; a stretch that was
      replaced by one of as many tokens corresponds token by token too, and by another number of
      tokens at its last token alone, where the model has read all of it.

    Padding has no counterpart.

    Args:
        clean: The layout of the clean prompt.
        corrupt: That of the corrupt one.

    Raises:
        PositionError: Other numbers of pictures, or pictures with other grids of patches.
    """
    if len(clean.images) != len(corrupt.images):
        raise PositionError(
            f"The clean prompt has {len(clean.images)} picture(s) and the corrupt one "
            f"{len(corrupt.images)}, so their positions have no counterparts: give both prompts "
            "equally many pictures."
        )
    for one, two in zip(clean.images, corrupt.images, strict=True):
        _check_alike(one, two, "text")
    found: list[tuple[int, int]] = []
    for mine, other in _stretches(clean, corrupt):
        if mine and clean.kinds[mine[0]] in (TEXT, SPECIAL) and len(mine) != len(other):
            found += _common(clean, corrupt, mine, other)
        else:
            found += zip(mine, other, strict=True)
    return PositionMap(clean, corrupt, tuple(found))


def _stretches(clean: Layout, corrupt: Layout) -> Iterator[tuple[Stretch, Stretch]]:
    """The runs of text and of pictures of both prompts, run beside run.

    Raises:
        PositionError: The pictures stand in another order, or another way among the text.
    """
    ours, theirs = _runs(clean), _runs(corrupt)
    if [kind for kind, _ in ours] != [kind for kind, _ in theirs]:
        raise PositionError(
            "The pictures do not stand among the text in the same way in both prompts, so their "
            f"positions have no counterparts: clean {clean!r}, corrupt {corrupt!r}."
        )
    for (_, mine), (_, other) in zip(ours, theirs, strict=True):
        yield mine, other


def _runs(layout: Layout) -> list[tuple[str, Stretch]]:
    """Text, picture, text, picture, ..., text; stretches of text may be empty."""
    found: list[tuple[str, Stretch]] = []
    for kind, group in groupby(_real(layout), lambda p: _run_kind(layout, p)):
        if kind != TEXT and (not found or found[-1][0] != TEXT):
            found.append((TEXT, []))
        found.append((kind, list(group)))
    return found if found and found[-1][0] == TEXT else [*found, (TEXT, [])]


def _run_kind(layout: Layout, position: int) -> str:
    kind = layout.kinds[position]
    return TEXT if kind == SPECIAL else kind


def _common(
    clean: Layout, corrupt: Layout, mine: Stretch, other: Stretch
) -> Iterator[tuple[int, int]]:
    """Counterparts in two stretches of text of other lengths."""
    ids, other_ids = ([x.token_ids[p] for p in ps] for x, ps in ((clean, mine), (corrupt, other)))
    matcher = SequenceMatcher(None, ids, other_ids, autojunk=False)
    for _, start, stop, other_start, other_stop in matcher.get_opcodes():
        width, other_width = stop - start, other_stop - other_start
        if width == other_width:
            yield from zip(mine[start:stop], other[other_start:other_stop], strict=True)
        elif width and other_width:
            yield mine[stop - 1], other[other_stop - 1]


def _check_alike(clean: ImageLayout, corrupt: ImageLayout, space: str) -> None:
    """Refuses two pictures whose positions cannot correspond.

    Raises:
        PositionError: They have other grids of patches, or other numbers of positions.
    """
    one, two = clean.space(space), corrupt.space(space)
    sizes = [
        ([(g.rows, g.cols) for g in s.grids], [len(positions) for _, positions in s.sequences])
        for s in (one, two)
    ]
    if sizes[0] == sizes[1]:
        return
    shapes = [
        " + ".join(f"{g.rows} x {g.cols}" for g in s.grids) + " patches"
        if s.grids
        else f"{sum(len(positions) for _, positions in s.sequences)} positions"
        for s in (one, two)
    ]
    where = {"text": "the language model"}.get(space, f"the {space} sequence")
    raise PositionError(
        f"Picture {clean.index} has {shapes[0]} in {where} in the clean prompt and {shapes[1]} in "
        "the corrupt one, so its positions have no counterparts: resize both pictures to the same "
        "width and height before the prompts are made (a processor's min_pixels=max_pixels is "
        "enough only where both have the same proportions)."
    )


def _of(row: int, positions: Sequence[int]) -> list[Cell]:
    return [(row, p) for p in positions]


def _real(layout: Layout) -> list[int]:
    return [i for i, kind in enumerate(layout.kinds) if kind != PAD]


def _missing(layout: Layout, known: set[int]) -> list[int]:
    return [p for p in _real(layout) if p not in known]
