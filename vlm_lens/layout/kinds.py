"""What stands at the positions of a prompt: text, special tokens, padding, pictures, videos."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from vlm_lens.errors import PositionError

__all__ = ["PAD", "SPECIAL", "TEXT", "Kind", "runs"]

TEXT, SPECIAL, PAD = "text", "special", "pad"
_SEEN = re.compile(r"(image|video) (\d+)")


class Kind(str):
    """What stands at a position: `"text"`, `"special"`, `"pad"`, `"image 0"`, `"video 0"`, ...

    It is the text that it shows, and knows which picture or video that names.
    """

    __slots__ = ()

    @classmethod
    def asked(cls, kind: str) -> Kind:
        """A kind that a user has named.

        Raises:
            PositionError: There is no such kind.
        """
        if kind not in (TEXT, SPECIAL, PAD) and not (
            isinstance(kind, str) and _SEEN.fullmatch(kind)
        ):
            raise PositionError(
                f"There is no kind of position {kind!r}: it is 'text', 'special', 'pad', or "
                "'image 0', 'video 0' and so on."
            )
        return cls(kind)

    @property
    def medium(self) -> Literal["image", "video"] | None:
        """`"image"` or `"video"`; `None` where neither stands."""
        if not _SEEN.fullmatch(self):
            return None
        return "image" if self.startswith("image") else "video"

    @property
    def number(self) -> int | None:
        """Which picture or video of the prompt; `None` where neither stands."""
        found = _SEEN.fullmatch(self)
        return int(found[2]) if found else None


def runs(kinds: Sequence[Kind]) -> Iterator[tuple[Kind, int, int]]:
    """Stretches of positions of one kind: kind, first position, one past the last."""
    start = 0
    for i in range(1, len(kinds) + 1):
        if i == len(kinds) or kinds[i] != kinds[start]:
            yield kinds[start], start, i
            start = i
