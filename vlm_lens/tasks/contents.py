"""What is known to be in a task's pictures: prompts, positions, and words for what is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlm_lens.prompts.template import QUESTION_ANSWER, RawPrompt, Template
from vlm_lens.tasks.rows import Row, TaskError

if TYPE_CHECKING:  # positions need torch, and a table of a task does not
    from vlm_lens.layout.positions import Position

__all__ = ["contents"]


def contents(
    rows: Sequence[Row], *, template: Template = QUESTION_ANSWER
) -> list[tuple[RawPrompt, Position, tuple[str, ...]]]:
    """The picture of each row as a bare query, where its content stands, and the words for it.

    Where a row knows the box that its answer depends on (the grid tasks), the content of its
    patches is the answer; of other rows the whole picture shows what the row is called.

    Args:
        rows: Rows with pictures.
        template: How a query is written.

    Raises:
        TaskError: A row without a picture, or one whose answer hangs on several boxes.
    """
    from vlm_lens.layout.positions import Images, Patches

    found: list[tuple[RawPrompt, Position, tuple[str, ...]]] = []
    for row in rows:
        prompt = template.build((), row.given("image"))
        if len(row.boxes) > 1:
            raise TaskError(
                f"the answer {row.output!r} of {row.input!r} hangs on {len(row.boxes)} boxes: no "
                "patch holds it alone"
            )
        if row.boxes:
            found.append((prompt, Patches(0, box=row.boxes[0]), row.answers))
        else:
            found.append((prompt, Images(), (row.input,)))
    return found
