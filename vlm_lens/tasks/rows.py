"""One row of a task: an entity, its picture, and what is right to answer."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from PIL import Image, ImageOps

from vlm_lens.errors import VLMLensError
from vlm_lens.pictures import as_read, fingerprint

if TYPE_CHECKING:
    from vlm_lens.layout.layout import Layout

__all__ = ["Modality", "Picture", "Row", "Split", "TaskError", "check_rows", "make_row"]

Modality = Literal["text", "image", "description"]
Split = Literal["validation", "test"]
Picture = Path | Traversable | Image.Image


class TaskError(VLMLensError):
    """A task, a row or a table that is not there or cannot be used as asked."""


@dataclass(frozen=True)
class Row:
    """One row of a task.

    Attributes:
        input: The entity's name: the input as text.
        output: The label.
        aliases: Other answers that are right too.
        picture: The picture, or the file that holds it; None where there is none.
        width: The width to which the picture is brought when opened, its aspect kept; None leaves
            it as it is. The paper uses 224, which the shipped pictures already have.
        description: The entity in a sentence that does not name it; empty where there is none.
        boxes: The boxes `(x0, y0, x1, y1)`, in pixels of `image`, that the answer depends on, where
            they are known.
    """

    input: str
    output: str
    aliases: tuple[str, ...] = ()
    picture: Picture | None = field(default=None, hash=False, repr=False)
    width: int | None = field(default=None, repr=False)
    description: str = field(default="", repr=False)
    boxes: tuple[tuple[float, float, float, float], ...] = field(default=(), repr=False)

    @property
    def answers(self) -> tuple[str, ...]:
        """The label and its aliases: every answer that is right."""
        return (self.output, *self.aliases)

    @cached_property
    def image(self) -> Image.Image:
        """The picture, opened at the first use and kept; RGB where it is made smaller.

        Raises:
            TaskError: The row has no picture, or its file cannot be read.
        """
        if self.picture is None:
            raise TaskError(
                f"the row {self.input!r} has no picture; ask for it with modality='text'"
            )
        if isinstance(self.picture, Image.Image):
            image = self.picture
        else:
            try:
                with self.picture.open("rb") as file, Image.open(file) as opened:
                    opened.load()
                    image = ImageOps.exif_transpose(opened)
            except FileNotFoundError as error:
                raise TaskError(f"the picture of {self.input!r} is gone: {error}") from error
            except Image.DecompressionBombError as error:
                raise TaskError(_too_large(self.input, self.picture)) from error
            except (OSError, SyntaxError, ValueError) as error:
                raise TaskError(
                    f"the picture of {self.input!r} cannot be read ({error}): {self.picture}; "
                    "is it a whole PNG, JPEG or other picture that Pillow knows?"
                ) from error
        if self.width is not None and image.width != self.width:
            height = max(1, int(self.width / image.width * image.height))
            image = as_read(image).resize((self.width, height))
        return image

    @cached_property
    def picture_digest(self) -> str | None:
        """A fingerprint of the picture: of its file's bytes, or its pixels; made once and kept.

        None where there is no picture, `"missing"` where its file cannot be read.
        """
        if self.picture is None:
            return None
        if isinstance(self.picture, Image.Image):
            data = fingerprint(self.picture).encode()
        else:
            try:
                data = self.picture.read_bytes()
            except OSError:
                return "missing"
        return hashlib.sha256(data).hexdigest()[:16]

    def given(self, modality: Modality) -> str | Image.Image:
        """The input in one form.

        Args:
            modality: `"text"` for the name, `"image"` for the picture, `"description"` for the
                sentence that describes it.

        Returns:
            The name, the picture or the sentence.

        Raises:
            TaskError: There is no such form, or the row does not have it.
        """
        if modality == "text":
            return self.input
        if modality == "image":
            return self.image
        if modality != "description":
            *first, last = (repr(m) for m in get_args(Modality))
            raise TaskError(f"a modality is {', '.join(first)} or {last}, not {modality!r}")
        if not self.description:
            raise TaskError(
                f"the row {self.input!r} has no description; Task.described() keeps the rows that "
                "have one"
            )
        return self.description

    def patches(self, layout: Layout, image: int = 0) -> list[int]:
        """Where the patches stand that the answer depends on.

        Args:
            layout: The layout of a prompt that shows the row's picture.
            image: Which picture of the prompt it is.

        Returns:
            Positions in the language model, in increasing order.

        Raises:
            TaskError: It is not known which part of the picture the answer depends on.
            PositionError: The layout has no such picture, or its positions hold no single patches.
        """
        if not self.boxes:
            raise TaskError(
                f"it is not known which part of the picture of {self.input!r} the answer depends "
                "on; the tasks 'grid-...' know it"
            )
        return sorted({p for box in self.boxes for p in layout.image[image].box(*box)})


def make_row(
    given: str,
    picture: Picture | str | os.PathLike[str] | None,
    answers: str | Sequence[str],
    *,
    folder: Path | None = None,
    width: int | None = None,
) -> Row:
    """Make a row of data from outside, and check it.

    Args:
        given: The input as text.
        picture: A picture, the path of one, or None.
        answers: The label, or the label and its aliases.
        folder: Where a relative path starts.
        width: As in `Row`.

    Returns:
        The row; its picture is known to exist and to begin like a picture.

    Raises:
        TaskError: Something is missing, with what and where.
    """
    if not isinstance(given, str) or not given.strip():
        raise TaskError(f"a row needs a text as input, not {given!r}")
    accepted = (answers,) if isinstance(answers, str) else tuple(answers)
    if not accepted or not all(isinstance(a, str) and a.strip() for a in accepted):
        raise TaskError(f"the row {given!r} needs a text as output, not {answers!r}")
    if isinstance(picture, (str, os.PathLike)):
        path = Path(picture)
        picture = path if folder is None else folder / path
        _check_picture(given, picture)
    elif isinstance(picture, Traversable):
        _check_picture(given, picture)
    elif picture is not None and not isinstance(picture, Image.Image):
        raise TaskError(
            f"the picture of {given!r} is a {type(picture).__name__}; "
            "pass a PIL picture or the path of one"
        )
    return Row(given, accepted[0], accepted[1:], picture, width)


def check_rows(name: str, rows: Sequence[Row]) -> None:
    """Refuse rows that are there twice: a query could then be among its own examples.

    Args:
        name: The task's name, for the message.
        rows: All rows of the task.

    Raises:
        TaskError: Two rows have the same input.
    """
    twice = [given for given, count in Counter(row.input for row in rows).items() if count > 1]
    if twice:
        shown = ", ".join(repr(t) for t in twice[:5]) + (", ..." if len(twice) > 5 else "")
        raise TaskError(
            f"the task {name!r} has rows with the same input: {shown}. A query could then be among "
            "its own examples; drop the duplicates or give them different inputs."
        )


def _check_picture(given: str, path: Path | Traversable) -> None:
    if not path.is_file():
        raise TaskError(f"the picture of {given!r} is not there: {path}")
    try:
        with path.open("rb") as file, Image.open(file):
            pass
    except Image.DecompressionBombError as error:
        raise TaskError(_too_large(given, path)) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise TaskError(f"the file of {given!r} is no picture that Pillow knows: {path}") from error


def _too_large(given: str, path: Path | Traversable) -> str:
    return (
        f"the picture of {given!r}, {path}, has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} "
        "pixels, which Pillow does not open lest a small file fill the memory: make it smaller, or "
        "set PIL.Image.MAX_IMAGE_PIXELS if you trust it"
    )
