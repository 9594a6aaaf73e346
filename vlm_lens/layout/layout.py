"""The coordinates of one prompt: which position is which token, which picture, which patch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal
from unicodedata import normalize

from vlm_lens.errors import PositionError, refuse_attribute
from vlm_lens.integers import is_integer
from vlm_lens.layout.kinds import PAD, SPECIAL, TEXT, Kind, runs
from vlm_lens.layout.pictures import (
    ImageLayout,
    PicturesOfPrompt,
    VideoLayout,
    VideosOfPrompt,
)
from vlm_lens.layout.typed import Typed
from vlm_lens.serial import savable

if TYPE_CHECKING:
    import pandas as pd

_Form = Literal["NFC", "NFKC", "NFD", "NFKD"]
_FORMS: tuple[_Form, ...] = ("NFC", "NFKC", "NFD", "NFKD")  # in which tokenizers write a text


_HABITS = {
    "tokens": "layout.strings are the texts of tokens, layout.token_ids their ids",
    "str_tokens": "it is layout.strings",
    "text": "layout.strings are its tokens; prompt.texts[row] is the whole",
    "shape": "len(layout) is its number of positions",
    "length": "len(layout) is its number of positions",
    "positions": "range(len(layout)) are all; a picture's are layout.image[0].positions",
    "patches": "layout.image[0].grid has them: rows, cols, positions, patch(row, col)",
    "n_patches": "it is len(layout.image[0].grid.positions)",
    "image_positions": "it is layout.image[0].positions",
    "image_tokens": "it is layout.image[0].positions",
}  # what users guess


@savable
@dataclass(frozen=True)
class Layout:
    """What stands at every position of one prompt.

    Attributes:
        token_ids: The token at each position.
        strings: Its text, for example `" Paris"`; empty where there is no tokenizer.
        kinds: `"text"`, `"special"`, `"pad"`, or `"image 0"`, `"video 0"`, ...: texts that know
            the picture which they name, `kind.medium` and `kind.number`.
        row: The prompt's row in its batch.
        images: Its pictures.
        videos: Its videos.
        shifted: How far the row stands to the right of where it was given: padding that a user's
            tensors had after it was moved before it. `At` counts as given.
        alone: Whether it was given as a prompt of its own and padded to stand beside others: `At`
            then counts from its own first token.
        pieces: What each token adds to the text, where that is not its string: a character that is
            split over several tokens is added by the last of them.
        encoder: Of an encoder-decoder, the layout of what its encoder reads, with its pictures;
            the positions here are then those of the decoder, where the answer stands.
        typed: The text as it was typed, where the tokenizer has made another form of it.
    """

    token_ids: tuple[int, ...]
    strings: tuple[str, ...]
    kinds: tuple[Kind, ...]
    row: int = 0
    images: tuple[ImageLayout, ...] = ()
    shifted: int = 0
    videos: tuple[VideoLayout, ...] = ()
    pieces: tuple[str, ...] = field(default=(), repr=False, compare=False)
    encoder: Layout | None = None
    typed: Typed | None = field(default=None, repr=False, compare=False)
    alone: bool = False
    _text: str = field(init=False, repr=False, compare=False)
    _starts: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "kinds", tuple(map(Kind, self.kinds)))
        object.__setattr__(self, "images", PicturesOfPrompt(self.images))
        object.__setattr__(self, "videos", VideosOfPrompt(self.videos))
        text, starts = "", []
        for string, kind in zip(self.pieces or self.strings, self.kinds, strict=False):
            starts.append(len(text))
            # a character that no tokenizer gives keeps words from joining across a picture
            text += string if kind in (TEXT, SPECIAL) else "\0" * max(len(string), 1)
        object.__setattr__(self, "_text", text)
        object.__setattr__(self, "_starts", tuple(starts))

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def image(self) -> tuple[ImageLayout, ...]:
        """The pictures; `layout.image[0].box(...)` gives positions for pixels."""
        return self.images

    @property
    def video(self) -> tuple[VideoLayout, ...]:
        """The videos; `layout.video[0].frame(2).patch(1, 3)` is the position of a patch."""
        return self.videos

    def counted(self, space: str) -> tuple[Layout, str]:
        """The layout that counts the positions of a space, and what that space is called there.

        Raises:
            PositionError: The encoder's are asked, and the model has none.
        """
        if space != "encoder":
            return self, space
        if self.encoder is None:
            raise PositionError("This prompt is of a model without an encoder.")
        return self.encoder, "text"

    @property
    def start(self) -> int:
        """The first position that is not padding."""
        return next((i for i, k in enumerate(self.kinds) if k != PAD), 0)

    def by_itself(self) -> Layout:
        """The same prompt as one that was given alone, whatever padding now stands beside it."""
        encoder = None if self.encoder is None else self.encoder.by_itself()
        return replace(self, shifted=self.start, alone=True, encoder=encoder)

    @property
    def last(self) -> int:
        """The last position that is not padding."""
        backwards = range(len(self.kinds) - 1, -1, -1)
        return next((i for i in backwards if self.kinds[i] != PAD), len(self) - 1)

    def of_kind(self, kind: str) -> list[int]:
        """All positions of one kind: `"text"`, `"special"`, `"pad"`, `"image 0"`, `"video 0"`.

        Raises:
            PositionError: There is no such kind.
        """
        asked = Kind.asked(kind)
        return [i for i, k in enumerate(self.kinds) if k == asked]

    def find(self, token: str | int, n: int = -1) -> int:
        """The position of the n-th occurrence of a token, or of a string.

        A string is looked for in the prompt's text, and the position is that of the token that
        holds its last character, so that `find(":", -3)` means the same on every tokenizer.
        A number is a token id. `n` counts from 0, or from the end if negative.

        Raises:
            PositionError: It does not occur, or not that often.
        """
        found = self.find_all(token)
        if not found:
            raise PositionError(f"{token!r} does not occur in this prompt. {self._preview()}")
        try:
            return found[n]
        except IndexError:
            raise PositionError(
                f"{token!r} occurs {len(found)} time{'s' * (len(found) > 1)} in this prompt; "
                f"occurrence {n} was asked. {self._preview()}"
            ) from None

    def find_all(self, token: str | int) -> list[int]:
        """Every position where a token id or a string ends; see `find`."""
        if is_integer(token):
            pairs = zip(self.token_ids, self.kinds, strict=True)
            return [i for i, (t, kind) in enumerate(pairs) if t == token and kind != PAD]
        if not isinstance(token, str):
            raise PositionError(f"What is found is a text or a token's id, not {token!r:.60}.")
        return [last for _, last in self._occurrences(token)]

    def span(self, text: str, n: int | None = None) -> list[int]:
        """The positions of all tokens that hold a part of `text`.

        Args:
            text: The text, as it stands in the prompt.
            n: Which occurrence; may be left out where there is one only.

        Raises:
            PositionError: It does not occur, or occurs more than once and `n` is not given.
        """
        found = list(self._occurrences(text))
        if not found:
            raise PositionError(f"{text!r} does not occur in this prompt. {self._preview()}")
        if n is None and len(found) > 1:
            raise PositionError(
                f"{text!r} occurs {len(found)} times in this prompt: say which with n=0, n=-1, ..."
            )
        try:
            first, last = found[0 if n is None else n]
        except IndexError:
            raise PositionError(
                f"{text!r} occurs {len(found)} times; occurrence {n} was asked."
            ) from None
        return list(range(first, last + 1))

    def _occurrences(self, text: str) -> Iterator[tuple[int, int]]:
        """First and last position of a text, each time that it stands there.

        It is looked for as it was typed, where the tokenizer says which characters each token
        holds. Else in what the tokens give back, which the tokenizer may have normalised: an accent
        that was typed as a character of its own may have become part of its letter.
        """
        if not self.strings:
            raise PositionError(
                "This prompt came as tensors without a tokenizer, so its text is not known: "
                "find a token by its id, or give HookedVLM a processor."
            )
        if not text:
            raise PositionError("An empty string has no position.")
        if self.typed is not None and text in self.typed.text:
            yield from self.typed.places(text)
            return
        forms = dict.fromkeys([text, *(normalize(form, text) for form in _FORMS)])
        here = next((form for form in forms if form in self._text), text)
        start = self._text.find(here)
        while start >= 0:
            yield self._first(start), self._at(start + len(here) - 1)
            start = self._text.find(here, start + 1)

    def _at(self, character: int) -> int:
        return bisect_right(self._starts, character) - 1

    def _first(self, character: int) -> int:
        """The first token that holds a part of a character."""
        position = self._at(character)
        while position and self._starts[position - 1] == self._starts[position]:
            position -= 1
        return position

    def _preview(self) -> str:
        text = "".join(
            s
            for s, k in zip(self.pieces or self.strings, self.kinds, strict=False)
            if k in (TEXT, SPECIAL)
        )
        return f"Its text is {text if len(text) <= 120 else '...' + text[-117:]!r}."

    def to_dataframe(self) -> pd.DataFrame:
        """One row a position: token id, text, kind, and for a patch its row, column and pixels.

        Rows and columns count in the patch's own grid.
        """
        import pandas as pd

        cells: dict[int, dict] = {}
        for image in self.images:
            for grid in image.text.grids:
                for p in grid.positions:
                    cells[p] = {"patch": grid.cell(p), "pixels": grid.pixels(p)}
        return pd.DataFrame(
            {
                "position": i,
                "token_id": t,
                "token": self.strings[i] if self.strings else None,
                "kind": k,
                "patch": cells.get(i, {}).get("patch"),
                "pixels": cells.get(i, {}).get("pixels"),
            }
            for i, (t, k) in enumerate(zip(self.token_ids, self.kinds, strict=True))
        )

    if not TYPE_CHECKING:  # a type checker would take any name for known

        def __getattr__(self, name: str) -> Any:
            refuse_attribute(type(self), name, _HABITS)

    def __repr__(self) -> str:
        parts: list[str] = []
        for kind, start, stop in runs(self.kinds):
            if kind.medium:
                grid = next((im.grid for im in self.images if f"image {im.index}" == kind), None)
                size = f", {grid.rows} x {grid.cols} patches" if grid else ""
                parts.append(f"{start}..{stop - 1} <{kind}{size}>")
            elif kind == PAD:
                parts.append(f"{start}..{stop - 1} <padding>")
            else:
                ids = range(start, stop)
                parts += [f"{i} {self.strings[i]!r}" if self.strings else f"{i}" for i in ids]
        if self.encoder is not None:
            parts.append(f"encoder: {self.encoder!r}")
        return f"Layout({len(self)} positions: {'  '.join(parts)})"
