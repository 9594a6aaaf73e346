"""Prompts before any model has seen them, and the question-and-answer form of the paper.

The form is that of the code of Luo et al. 2025 (arXiv 2410.22330), which has no space after the
colons, although the paper prints one.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vlm_lens.errors import PromptError
from vlm_lens.keywords import Answering
from vlm_lens.pictures import as_picture, thumbnail
from vlm_lens.tokens import IMAGE

__all__ = ["QUESTION_ANSWER", "RawPrompt", "Template", "question_answer"]


@dataclass(frozen=True)
class RawPrompt(Answering):
    r"""A prompt before any model has seen it; `<image>` in the text marks each picture's place.

    Attributes:
        text: The text, with one `<image>` for each picture.
        images: The pictures, in the order of their places; one picture, a list, and paths are
            accepted too.

    Raises:
        PromptError: There are more or fewer `<image>` than pictures, or a picture is none.

    Example:
        >>> RawPrompt("Q:France\nA:")
        RawPrompt('Q:France\nA:')
    """

    text: str
    images: tuple[Image.Image, ...] = ()

    def __post_init__(self) -> None:
        """Check that text and pictures belong together."""
        if not isinstance(self.text, str):
            raise PromptError(
                f"the text of a prompt is a string, not {type(self.text).__name__}; "
                "make one RawPrompt for each text"
            )
        images = self.images
        if images is None:
            images = ()
        elif isinstance(images, str | Path | Image.Image):
            images = (images,)
        elif not isinstance(images, Iterable):
            raise PromptError(f"images is a list of PIL pictures or paths, not {images!r:.80}")
        images = tuple(as_picture(p, f"picture {i}") for i, p in enumerate(images))
        object.__setattr__(self, "images", images)
        places = self.text.count(IMAGE)
        if places != len(images):
            raise PromptError(
                f"the text has {places} {IMAGE!r} and there {_are(len(images))}: "
                f"put one {IMAGE!r} in the text for each picture. Text: {_short(self.text)!r}"
            )

    def __hash__(self) -> int:
        """By text and the pictures' sizes: pictures themselves have no hash."""
        return hash((self.text, *(image.size for image in self.images)))

    def __repr__(self) -> str:
        """Show the text and the size of each picture."""
        sizes = ", ".join(f"{image.width}x{image.height}" for image in self.images)
        return f"RawPrompt({self.text!r}{f', images=[{sizes}]' if sizes else ''})"

    def _repr_html_(self) -> str:
        """Show the text with the pictures in their places."""
        first, *rest = (html.escape(part) for part in self.text.split(IMAGE))
        pieces = [first]
        for image, text in zip(self.images, rest, strict=True):
            pieces += [thumbnail(image), text]
        return f'<pre style="line-height:1.3">{"".join(pieces)}</pre>'


@dataclass(frozen=True)
class Template:
    """How examples and an open query are written, one after another with nothing between.

    Attributes:
        example: The form of a full example, with `{input}` and `{output}`.
        query: The form of an open query, with `{input}`.
    """

    example: str
    query: str

    def __post_init__(self) -> None:
        """Check that the fields are there."""
        for form, fields in ((self.example, ("{input}", "{output}")), (self.query, ("{input}",))):
            for field in fields:
                if form.count(field) != 1:
                    raise PromptError(f"the form {form!r} must hold {field} exactly once")

    def build(
        self,
        examples: Iterable[tuple[str | Image.Image, str]],
        query: str | Image.Image | None = None,
    ) -> RawPrompt:
        """Write the examples, then the open query.

        Args:
            examples: Pairs of input and output; an input is a text or a picture.
            query: The input left open, or None for examples only.

        Returns:
            The prompt.

        Raises:
            PromptError: An input is neither, or a text holds `<image>` itself.
        """
        images: list[Image.Image] = []

        def written(value: str | Image.Image) -> str:
            if isinstance(value, Image.Image):
                images.append(value)
                return IMAGE
            return _text(value, "an input")

        text = ""
        for example in examples:
            if isinstance(example, (str, Image.Image)) or len(example) != 2:
                raise PromptError(f"an example is a pair (input, output), not {example!r}")
            given, output = example
            # One pass over the form: braces in the values are left alone.
            text += self.example.format(input=written(given), output=_text(output, "an output"))
        if query is not None:
            text += self.query.format(input=written(query))
        return RawPrompt(text, tuple(images))


QUESTION_ANSWER = Template(example="Q:{input}\nA:{output}\n\n", query="Q:{input}\nA:")


def question_answer(
    examples: Iterable[tuple[str | Image.Image, str]],
    query: str | Image.Image | None = None,
) -> RawPrompt:
    r"""Write a few-shot prompt exactly as the paper's code does.

    Each example is `Q:{input}\nA:{output}\n\n`, the query `Q:{input}\nA:`. In a prompt of text
    examples and a text query, the third `:` from the end is thus the one after which the last
    example's output is written.

    Args:
        examples: Pairs of input and output; an input is a text or a picture.
        query: The input left open, or None for examples only.

    Returns:
        The prompt.

    Example:
        >>> question_answer([("Greece", "Athens")], "Peru").text
        'Q:Greece\nA:Athens\n\nQ:Peru\nA:'
    """
    return QUESTION_ANSWER.build(examples, query)


def _text(value: object, role: str) -> str:
    if not isinstance(value, str):
        hint = "a text or a PIL picture" if role == "an input" else "a text"
        raise PromptError(f"{role} is {hint}, not {type(value).__name__}")
    if IMAGE in value:
        raise PromptError(f"{value!r} holds {IMAGE!r}: pass the picture itself as the input")
    return value


def _are(count: int) -> str:
    return f"is {count} picture" if count == 1 else f"are {count} pictures"


def _short(text: str, most: int = 120) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
