"""What a measure calls an answer: a token, a text, or several that mean the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.integers import as_integers, is_integer
from vlm_lens.keywords import Answering
from vlm_lens.measures.base import MeasureError
from vlm_lens.serial import savable
from vlm_lens.tokens import encode, string_token

# A text is split into tokens as it would be after these; the first that no token spans is taken.
_BEFORE = (":", "\n", ".", "a")


@savable
@dataclass(frozen=True)
class AnyOf(Answering):
    """Answers that mean the same, such as `AnyOf(" Paris", "Paris")`: probabilities are added.

    Where a tokenizer makes a token of the space alone, the text that begins with it is left out.

    Attributes:
        options: Token ids or texts.
    """

    options: tuple[int | str, ...]

    def __init__(self, *answers: int | str, options: Sequence[int | str] = ()):
        object.__setattr__(self, "options", (*answers, *options))
        if not self.options:
            raise MeasureError("AnyOf() names no answer.")
        for option in self.options:
            if not isinstance(option, str) and not is_integer(option):
                raise MeasureError(
                    "AnyOf takes texts and token ids one by one, AnyOf('Paris', ' Paris'), not "
                    f"{option!r:.60}."
                )

    def __repr__(self) -> str:
        return f"AnyOf({', '.join(map(repr, self.options))})"


Answer = int | str | AnyOf
Answers = Answer | Sequence[Answer]  # one for all rows of a prompt, or one for each


@dataclass(frozen=True)
class AnswerTokens:
    """The token ids that each row's answer may begin with.

    Attributes:
        ids: `[row, option]`, rows of fewer options filled with the first.
        real: Which of them are options.
    """

    ids: Tensor
    real: Tensor

    def log_total(self, x: Float[Tensor, "row d_vocab"]) -> Float[Tensor, " row"]:
        """`log sum exp` of `x` over each row's options."""
        chosen = x.gather(-1, self.ids.to(x.device))
        return chosen.masked_fill(~self.real.to(x.device), -torch.inf).logsumexp(-1)

    def best(self, x: Float[Tensor, "row d_vocab"]) -> Float[Tensor, " row"]:
        """The largest entry of `x` among each row's options."""
        return x.gather(-1, self.ids.to(x.device)).amax(-1)


def first_tokens(vlm: HookedModel, answers: Answers, n_rows: int) -> AnswerTokens:
    """The first token of each row's answer.

    Args:
        vlm: The model.
        answers: One for all rows, or one for each.
        n_rows: How many rows the prompt has.

    Raises:
        MeasureError: Another number of answers than rows, or no such token.
    """
    rows = []
    for answer in per_row(answers, n_rows):
        options = answer.options if isinstance(answer, AnyOf) else (answer,)
        ids = {o: answer_ids(vlm, o)[0] for o in options}
        telling = [i for o, i in ids.items() if not isinstance(o, str) or not _is_space(vlm, i)]
        if not telling:
            raise MeasureError(
                f"The first token of {answer!r} is a space alone in this model, which says nothing "
                "of the answer: leave the space out, or measure AnswerProb."
            )
        rows.append(list(dict.fromkeys(telling)))
    width = max(map(len, rows))
    ids = torch.tensor([row + row[:1] * (width - len(row)) for row in rows])
    real = torch.arange(width)[None, :] < torch.tensor([len(row) for row in rows])[:, None]
    return AnswerTokens(ids, real)


def check_apart(vlm: HookedModel, answers: Answers, others: Answers, n_rows: int) -> None:
    """Refuses two answers that begin with the same token.

    Raises:
        MeasureError: They do, so the first token cannot tell one from the other.
    """
    first, second = (first_tokens(vlm, a, n_rows) for a in (answers, others))
    for row in range(n_rows):
        both = set(first.ids[row].tolist()) & set(second.ids[row].tolist())
        if both:
            one, two = (per_row(a, n_rows)[row] for a in (answers, others))
            token = both.pop()
            shown = string_token(vlm.tokenizer, token) if vlm.tokenizer else token
            raise MeasureError(
                f"{one!r} and {two!r} both begin with the token {shown!r} of this model, so the "
                "next token cannot tell them apart: choose other answers, or compare "
                "AnswerProb of each."
            )


def _is_space(vlm: HookedModel, token: int) -> bool:
    return not string_token(vlm.tokenizer, token).strip()


def per_row(answers: Answers, n_rows: int) -> list[Answer]:
    """One answer a row.

    Raises:
        MeasureError: Another number of answers than rows.
    """
    if not isinstance(answers, tuple | list):
        return [answers] * n_rows
    if len(answers) != n_rows:
        raise MeasureError(
            f"{len(answers)} answers were given for a prompt of {n_rows} row"
            f"{'s' * (n_rows != 1)}: give one for all rows, or one for each; answers that mean the "
            "same are AnyOf(...)."
        )
    return list(answers)


def for_rows(measure: Any, rows: Sequence[int], n_rows: int) -> Any:
    """A measure for some rows of many: of an answer for each row, theirs.

    Args:
        measure: A measure; answers are its fields `answer` and `other`.
        rows: Which rows.
        n_rows: How many there are in all.

    Raises:
        MeasureError: Another number of answers than rows.
    """
    found = {}
    for name in ("answer", "other"):
        given = getattr(measure, name, None)
        if isinstance(given, tuple | list):
            listed = per_row(given, n_rows)
            found[name] = tuple(listed[row] for row in rows)
    return replace(measure, **found) if found else measure


def answer_ids(vlm: HookedModel, answer: int | str | tuple[int, ...]) -> list[int]:
    """The tokens of an answer as they would follow a prompt: a leading space is part of it.

    Raises:
        MeasureError: No token, one that the model does not have, or a text without a tokenizer.
    """
    if isinstance(answer, str):
        return _continuation(vlm, answer)
    ids = list(as_integers(answer, "A token's id", MeasureError))
    if not ids or not all(0 <= i < vlm.cfg.d_vocab for i in ids):
        raise MeasureError(
            f"{answer!r} is no token of this model: ids are 0 to {vlm.cfg.d_vocab - 1}."
        )
    return ids


def _continuation(vlm: HookedModel, text: str) -> list[int]:
    if vlm.tokenizer is None:
        raise MeasureError(
            f"The text {text!r} cannot be split into tokens without a tokenizer: give token ids, "
            "or HookedVLM a processor."
        )
    if not text.strip():
        raise MeasureError(f"{text!r} is no answer: it has no letters.")
    for before in _BEFORE:
        start, whole = (encode(vlm.tokenizer, t) for t in (before, before + text))
        if len(whole) > len(start) and whole[: len(start)] == start:
            return whole[len(start) :]
    return encode(vlm.tokenizer, text)
