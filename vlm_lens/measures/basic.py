"""The most likely token, scores of chosen tokens, the logits themselves, and own functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.measures.base import LogitMeasure, MeasureError, Record
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.serial import savable
from vlm_lens.tokens import string_token

_AT_ONCE = 1 << 24  # numbers of which probabilities are made at once


@savable
@dataclass(frozen=True)
class Top1(LogitMeasure):
    """The most likely next token and its probability."""

    of_each_row: ClassVar[bool] = True

    @property
    def columns(self) -> tuple[str, ...]:
        """`token_id`, `token`, `prob`."""
        return ("token_id", "token", "prob")

    def records(self, vlm: HookedModel, logits: Tensor, tokens: Any) -> list[Record]:
        """Columns `token_id`, `token`, `prob`."""
        found = []
        for some in logits[:, -1].split(max(1, _AT_ONCE // logits.shape[-1])):
            probs = some.float().softmax(-1)
            best = probs.argmax(-1, keepdim=True)
            prob = probs.gather(-1, best)
            for token, p in zip(best[:, 0].tolist(), prob[:, 0].tolist(), strict=True):
                text = string_token(vlm.tokenizer, token) if vlm.tokenizer else str(token)
                found.append({"token_id": token, "token": text, "prob": p})
        return found


@savable
@dataclass(frozen=True)
class TokenScores(LogitMeasure):
    """Logit, probability and rank of chosen tokens as the next token.

    Attributes:
        tokens: Token ids, or texts of one token.
    """

    tokens: tuple[int | str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """`logit(x)`, `prob(x)`, `rank(x)` for each token."""
        return tuple(f"{name}({t!r})" for t in self.tokens for name in ("logit", "prob", "rank"))

    def resolved(self, vlm: HookedModel, prompt: Prompt) -> list[int]:
        """The token ids.

        Raises:
            VLMLensError: A text that is not one token.
        """
        return [vlm.to_token_id(t) for t in self.tokens]

    def records(self, vlm: HookedModel, logits: Tensor, tokens: list[int]) -> list[Record]:
        """Columns `logit(x)`, `prob(x)`, `rank(x)` for each token."""
        found = []
        for row in logits:
            last = row[-1].float()
            probs, record = last.softmax(-1), {}
            for token, i in zip(self.tokens, tokens, strict=True):
                record[f"logit({token!r})"] = float(last[i])
                record[f"prob({token!r})"] = float(probs[i])
                record[f"rank({token!r})"] = int((last > last[i]).sum())
            found.append(record)
        return found


@savable
@dataclass(frozen=True)
class Logits(LogitMeasure):
    """The logits themselves, at the last positions.

    Attributes:
        positions: How many of the last positions.
    """

    positions: int = 1
    of_each_row: ClassVar[bool] = True

    @property
    def n_last(self) -> int:
        """As many as asked."""
        return self.positions

    @property
    def columns(self) -> tuple[str, ...]:
        """`logits`."""
        return ("logits",)

    def records(self, vlm: HookedModel, logits: Tensor, tokens: Any) -> list[Record]:
        """One column `logits`, a tensor `[positions, d_vocab]` on the CPU."""
        return [{"logits": row.clone()} for row in logits.cpu()]


@dataclass(frozen=True)
class Custom(LogitMeasure):
    """A function of the last position's logits, `[d_vocab]`, to a number or a dictionary.

    Attributes:
        function: The function.
        differentiable: Whether gradients flow through it, and `values` may be asked for.
    """

    function: Callable[[Tensor], Any]
    differentiable: bool = False

    def values(self, logits: Tensor, tokens: Any) -> Tensor:
        """What the function makes of each row, `[row]`.

        Raises:
            MeasureError: The function gives no tensor of one number.
        """
        found = [self.function(row[-1]) for row in logits]
        for value in found:
            if not isinstance(value, Tensor) or value.dim():
                raise MeasureError(
                    f"The function gives a {type(value).__name__}; gradients need a tensor of one "
                    "number."
                )
        return torch.stack(found)

    def records(self, vlm: HookedModel, logits: Tensor, tokens: Any) -> list[Record]:
        """Column `value`, or the dictionary's own."""
        found = []
        for row in logits:
            value = self.function(row[-1])
            if isinstance(value, dict):
                found.append(value)
                continue
            number = isinstance(value, Tensor) and value.dim() == 0
            found.append({"value": value.item() if number else value})
        return found
