"""What a generation gives back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Generation:
    """New tokens of each row of a prompt.

    Attributes:
        tokens: The new tokens, `[batch, new]`; rows that ended early are padded.
        text: The text of each row, special tokens left out; empty without a tokenizer.
    """

    tokens: Tensor
    text: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def __str__(self) -> str:
        return "\n".join(self.text)

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.text[:8])) + (", ..." if len(self.text) > 8 else "")
        return f"Generation({shown or self.tokens.tolist()})"
