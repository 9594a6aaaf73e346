"""One picture of a batch in the three sequences, and which image tokens of the text are its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from vlm_lens.errors import PromptError
from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.layout.geometry import PatchGrid, PixelMap
from vlm_lens.layout.pictures import ImageLayout, ImageSpace

Brackets = tuple[Collection[int], Collection[int]]


@dataclass(frozen=True)
class Picture:
    """One picture of a batch, before its place in the text is known.

    Attributes:
        n_tokens: How many image tokens it has in the text.
        grids: Its patches among them, counted from its own first token.
        vision: It in the tower.
        projector: It in the projector's output.
        why_no_grid: Why no token holds a single patch, if so.
    """

    n_tokens: int
    grids: tuple[PatchGrid, ...]
    vision: ImageSpace
    projector: ImageSpace
    why_no_grid: str = ""


def place_pictures(
    batch: PictureBatch, pictures: Sequence[Picture], brackets: Brackets = ((), ())
) -> list[list[ImageLayout]]:
    """Gives the image tokens of each row to pictures, in reading order.

    Args:
        batch: The batch.
        pictures: All its pictures.
        brackets: Tokens that open a picture in the text, and tokens that close it: they belong to
            it, but to no patch.

    Raises:
        PromptError: Image tokens and pictures do not match.
    """
    found, counts = sum(map(len, batch.places)), [p.n_tokens for p in pictures]
    if found and not pictures:
        raise PromptError(
            f"The prompt holds {found} image tokens but no pixel_values: give the pictures, "
            "vlm.prompt(text, images=[...])."
        )
    if sum(counts) != found:
        each = f"{counts[0]}" if len(set(counts)) == 1 else "+".join(map(str, counts))
        raise PromptError(
            f"{len(pictures)} picture(s) of {each} patches need {sum(counts)} image tokens; "
            f"the prompt holds {found}. Write one <image> for each picture."
        )
    queue = iter(pictures)
    return [_place(r, batch.ids[r], mine, queue, brackets) for r, mine in enumerate(batch.places)]


def _place(
    row: int, ids: list[int], positions: list[int], queue: Iterator[Picture], brackets: Brackets
) -> list[ImageLayout]:
    opening, closing = brackets
    images: list[ImageLayout] = []
    free = 0  # the first position after the picture before
    while positions:
        picture = next(queue)
        mine, positions = positions[: picture.n_tokens], positions[picture.n_tokens :]
        if len(mine) < picture.n_tokens:
            raise PromptError(
                f"Text {row} of the batch ends within a picture of {picture.n_tokens} image "
                "tokens: was it cut? Write one <image> for each picture."
            )
        start, end = mine[0], mine[-1] + 1
        start = next((i for i in range(start - 1, free - 1, -1) if ids[i] in opening), start)
        while end < len(ids) and ids[end] in closing:
            end += 1
        free = end
        grids = tuple(
            replace(g, positions=tuple(mine[i] for i in g.positions), row=row)
            for g in picture.grids
        )
        text = ImageSpace(grids, ((row, tuple(range(start, end))),), picture.why_no_grid)
        images.append(ImageLayout(len(images), text, picture.vision, picture.projector))
    return images


def runs_of(positions: Sequence[int]) -> list[list[int]]:
    """Positions as stretches of neighbours."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][-1] + 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return runs


def grid(rows: int, cols: int, start: int, row: int, pixels: PixelMap) -> tuple[PatchGrid, ...]:
    """A grid at positions one after the other; none where there is no patch."""
    if not rows * cols:
        return ()
    return (PatchGrid(rows, cols, tuple(range(start, start + rows * cols)), row, pixels),)


def packed_space(rows: int, cols: int, positions: Sequence[int], pixels: PixelMap) -> ImageSpace:
    """A picture in a sequence that holds the pictures of the whole batch, in any order."""
    if not rows * cols:
        return ImageSpace((), ((0, ()),))
    cells = PatchGrid(rows, cols, tuple(positions), 0, pixels)
    return ImageSpace((cells,), ((0, tuple(sorted(positions))),))


def one_frame(
    number: int,
    rows: int,
    cols: int,
    pixels: PixelMap,
    *,
    n_class_tokens: int = 0,
    dropped: int = 0,
    merged: tuple[int, int] | None = None,
    after: PixelMap | None = None,
) -> Picture:
    """A picture that the tower sees in one frame.

    Args:
        number: Its number in the batch.
        rows: Patches from top to bottom in the tower.
        cols: Patches from left to right in the tower.
        pixels: How the picture became the frame.
        n_class_tokens: Positions of the tower before the first patch.
        dropped: How many of the tower's first positions do not enter the projector.
        merged: Rows and columns after the projector, where it merges patches.
        after: How the picture became the frame that they cover, if that is another one.
    """
    sequence = n_class_tokens + rows * cols
    seen = grid(rows, cols, n_class_tokens, number, pixels)
    vision = ImageSpace(seen, ((number, tuple(range(sequence))),))
    before = n_class_tokens - dropped  # class tokens that stay in front of the patches
    rows, cols = merged or (rows, cols)
    length = before + rows * cols
    sequences = ((number, tuple(range(length))),)
    if before < 0:
        why = "This model drops a patch as if it were a class token"
        return Picture(length, (), vision, ImageSpace((), sequences, why), why)
    grids = grid(rows, cols, before, number, after or pixels)
    return Picture(length, grids, vision, ImageSpace(grids, sequences))
