"""A prompt's text as it was typed, and which of its characters each token holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vlm_lens.serial import savable

Span = tuple[int, int]  # first character, one past the last
NOWHERE: Span = (-1, -1)


@savable
@dataclass(frozen=True)
class Typed:
    """What was typed, beside tokens that a tokenizer has made of another form of it.

    Attributes:
        text: The text, with the marks of its pictures.
        spans: The characters of each position; `NOWHERE` for padding, pictures, and tokens that
            were added.
    """

    text: str
    spans: tuple[Span, ...]

    def places(self, text: str) -> Iterator[tuple[int, int]]:
        """First and last position of each occurrence of a text."""
        start = self.text.find(text)
        while start >= 0:
            yield self._holding(start)[0], self._holding(start + len(text) - 1)[-1]
            start = self.text.find(text, start + 1)

    def _holding(self, character: int) -> list[int]:
        """The tokens that hold a character; the next one has a space that none holds."""
        here = [i for i, (start, end) in enumerate(self.spans) if start <= character < end]
        later = [i for i, (start, _) in enumerate(self.spans) if start > character]
        return here or later[:1] or [max(i for i, s in enumerate(self.spans) if s != NOWHERE)]
