"""What is measured of each variant."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_lens.errors import VLMLensError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.layout.layout import Layout
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.points.point import Point
from vlm_lens.points.table import PointTable
from vlm_lens.tokens import string_token


class MeasureError(VLMLensError):
    """A measure that is not known, or that does not fit."""


@dataclass(frozen=True)
class Measure(ABC):
    """A measure of one variant on one row of the prompt.

    Attributes:
        n_last: How many of the last positions' logits it needs.
        new_tokens: How many tokens are generated for it; 0 where logits suffice.
    """

    @property
    def n_last(self) -> int:
        """How many of the last positions' logits are needed."""
        return 1

    @property
    def new_tokens(self) -> int:
        """How many tokens must be generated; 0 where logits suffice."""
        return 0

    @abstractmethod
    def read(self, vlm: HookedModel, logits: Tensor, tokens: Tensor | None) -> dict[str, Any]:
        """The columns of one row.

        Args:
            vlm: The model.
            logits: `[n_last, d_vocab]`, the last position last.
            tokens: The generated tokens, `[new_tokens]`, if any.
        """


@dataclass(frozen=True)
class Top1(Measure):
    """The most likely next token and its probability."""

    def read(self, vlm: HookedModel, logits: Tensor, tokens: Tensor | None) -> dict[str, Any]:
        """Columns `token_id`, `token`, `prob`."""
        probs = logits[-1].float().softmax(-1)
        best = int(probs.argmax())
        text = string_token(vlm.tokenizer, best) if vlm.tokenizer else str(best)
        return {"token_id": best, "token": text, "prob": float(probs[best])}


@dataclass(frozen=True)
class TokenScores(Measure):
    """Logit, probability and rank of chosen tokens as the next token.

    Attributes:
        tokens: Token ids, or texts of one token.
    """

    tokens: tuple[int | str, ...]

    def read(self, vlm: HookedModel, logits: Tensor, tokens: Tensor | None) -> dict[str, Any]:
        """Columns `logit(x)`, `prob(x)`, `rank(x)` for each token."""
        last = logits[-1].float()
        probs, columns = last.softmax(-1), {}
        for token in self.tokens:
            i = token if isinstance(token, int) else vlm.to_single_token(token)
            columns[f"logit({token!r})"] = float(last[i])
            columns[f"prob({token!r})"] = float(probs[i])
            columns[f"rank({token!r})"] = int((last > last[i]).sum())
        return columns


@dataclass(frozen=True)
class Logits(Measure):
    """The logits themselves, at the last positions.

    Attributes:
        positions: How many of the last positions.
    """

    positions: int = 1

    @property
    def n_last(self) -> int:
        """As many as asked."""
        return self.positions

    def read(self, vlm: HookedModel, logits: Tensor, tokens: Tensor | None) -> dict[str, Any]:
        """One column `logits`, a tensor `[positions, d_vocab]` on the CPU."""
        return {"logits": logits.cpu().clone()}


@dataclass(frozen=True)
class GeneratedTokens(Measure):
    """Tokens generated greedily.

    Attributes:
        max_new_tokens: How many, at the most.
    """

    max_new_tokens: int = 1

    @property
    def new_tokens(self) -> int:
        """As many as asked."""
        return self.max_new_tokens

    def read(self, vlm: HookedModel, logits: Tensor, tokens: Tensor | None) -> dict[str, Any]:
        """Columns `tokens` (ids) and `text`."""
        ids = [] if tokens is None else tokens.tolist()
        text = vlm.tokenizer.decode(ids, skip_special_tokens=True) if vlm.tokenizer else ""
        return {"tokens": ids, "text": text}


@dataclass(frozen=True)
class Capture(Measure):
    """Activations, as they are under each variant.

    Attributes:
        points: A point, a glob or several.
        at: Where; as many positions in each row of the prompt.
    """

    points: str | tuple[str, ...]
    at: Position | int | Sequence[int]

    def __post_init__(self) -> None:
        points = (self.points,) if isinstance(self.points, str) else tuple(self.points)
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "at", as_position(self.at))

    def read(self, vlm: HookedModel, logits: Tensor, tokens: Tensor | None) -> dict[str, Any]:
        """Logits hold no activations.

        Raises:
            MeasureError: Always; `run` reads them.
        """
        raise MeasureError("Capture reads activations in a run of its own.")

    def run(self, vlm: HookedModel, prompt: Any, interventions: Any) -> list[dict[str, Tensor]]:
        """Each row's columns: point -> `[positions, ...]` on the CPU, patterns `[head, ...]`."""
        _, cache = vlm.run_with_cache(
            prompt, names_filter=list(self.points), positions=self.at, device="cpu",
            interventions=interventions,
        )  # fmt: skip
        return [{name: cache[name][row] for name in cache} for row in range(len(prompt))]

    def places(self, point: Point, layouts: Sequence[Layout]) -> list[tuple[int, int]]:
        """Row and position of every value read at a point, row by row of the prompt."""
        return [place for layout in layouts for place in self.at.resolve(layout, point.space)]

    def changed(
        self,
        plain: Sequence[dict[str, Tensor]],
        points: PointTable,
        places: Mapping[str, Sequence[tuple[int, int]]],
        read: Mapping[str, Mapping[tuple[int, int], Tensor]],
    ) -> list[dict[str, Tensor]]:
        """The columns of a variant: those of the plain run but for what was read anew.

        Args:
            plain: The columns of the plain run, one dictionary a row of the prompt.
            points: The model's points.
            places: Point -> its places, as `places` gives them.
            read: Point -> place -> the activation there under the variant.
        """
        records = [{name: value.clone() for name, value in row.items()} for row in plain]
        for name, found in read.items():
            each = len(places[name]) // len(records)
            for i, place in enumerate(places[name]):
                if place in found:
                    column = records[i // each][name]
                    axis = 1 if "query" in points[name].axes else 0
                    column.select(axis, i % each).copy_(found[place])
        return records


@dataclass(frozen=True)
class Custom(Measure):
    """A function of the last position's logits, `[d_vocab]`, to a number or a dictionary.

    Attributes:
        function: The function.
    """

    function: Callable[[Tensor], Any]

    def read(self, vlm: HookedModel, logits: Tensor, tokens: Tensor | None) -> dict[str, Any]:
        """Column `value`, or the dictionary's own."""
        value = self.function(logits[-1])
        if isinstance(value, dict):
            return value
        return {"value": value.item() if isinstance(value, Tensor) and value.dim() == 0 else value}


def as_measure(measure: Measure | str | Sequence | Callable) -> Measure:
    """`"top1"`, `"logits"`, `"generate"`, tokens, a function, or a `Measure`.

    Raises:
        MeasureError: None of these.
    """
    if isinstance(measure, Measure):
        return measure
    known = {"top1": Top1, "logits": Logits, "generate": GeneratedTokens}
    if isinstance(measure, str):
        if measure in known:
            return known[measure]()
        raise MeasureError(
            f"There is no measure {measure!r}: use {', '.join(map(repr, known))}, a list of "
            "tokens, a function of the last logits, or a Measure."
        )
    if callable(measure):
        return Custom(measure)
    if isinstance(measure, list | tuple) and all(isinstance(t, int | str) for t in measure):
        return TokenScores(tuple(measure))
    raise MeasureError(f"{measure!r} is no measure.")


def greedy(logits: Tensor) -> Tensor:
    """The most likely token of each row, `[rows]`."""
    return torch.argmax(logits, dim=-1)
