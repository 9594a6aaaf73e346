"""Which image tokens of a batch belong to which picture."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vlm_lens.errors import PromptError


def picture_places(marks: Tensor, counts: Sequence[int]) -> list[list[tuple[int, ...]]]:
    """The positions of each picture, for each row of a batch.

    Args:
        marks: True at image tokens, `[batch, pos]`.
        counts: How many image tokens each picture of the batch takes, in reading order.

    Raises:
        PromptError: Image tokens and pictures do not match.
    """
    found, expected = int(marks.sum()), sum(counts)
    if found and not counts:
        raise PromptError(
            f"The prompt holds {found} image tokens but no pixel_values: give the pictures, "
            "vlm.prompt(text, images=[...])."
        )
    if found != expected:
        raise PromptError(
            f"{len(counts)} picture(s) need {expected} image tokens; the prompt holds {found}. "
            "Write one <image> for each picture."
        )
    rows: list[list[tuple[int, ...]]] = []
    number = 0
    for row, mark in enumerate(marks):
        positions = mark.nonzero().flatten().tolist()
        pictures: list[tuple[int, ...]] = []
        while positions:
            count = counts[number]
            if count > len(positions):
                raise PromptError(
                    f"Picture {number} needs {count} image tokens, and row {row} of the batch has "
                    f"{len(positions)} left: was the text cut?"
                )
            pictures.append(tuple(positions[:count]))
            positions, number = positions[count:], number + 1
        rows.append(pictures)
    return rows
