"""Numbers of the next token: probability, logit difference, rank, divergence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.engine.baseline import Baseline
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.measures.answers import Answers, AnswerTokens, check_apart, first_tokens
from vlm_lens.measures.base import BoundLogits, LogitMeasure, MeasureError, Record, at_last
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.serial import FrozenTensor, savable

PLAIN = "plain"


@dataclass(frozen=True)
class NextTokenMeasure(LogitMeasure):
    """A number of the next token: one column, named by `column`."""

    differentiable: ClassVar[bool] = True
    column: ClassVar[str]

    @property
    def columns(self) -> tuple[str, ...]:
        """Its one column."""
        return (self.column,)

    def records(
        self, vlm: HookedModel, logits: Float[Tensor, "row pos d_vocab"], tokens: Any
    ) -> list[Record]:
        """One column, a number."""
        return [{self.column: value} for value in self.values(logits, tokens).tolist()]


@dataclass(frozen=True)
class _AnswerMeasure(NextTokenMeasure):
    answer: Answers

    def __post_init__(self):
        _freeze(self, "answer")

    def resolved(self, vlm: HookedModel, prompt: Prompt) -> AnswerTokens:
        """The first token of each row's answer."""
        return first_tokens(vlm, self.answer, len(prompt))


@savable
@dataclass(frozen=True)
class Prob(_AnswerMeasure):
    """The probability that the next token begins an answer; column `prob`.

    Attributes:
        answer: A text (its first token counts; `" Paris"` and `"Paris"` are two), a token id,
            `AnyOf(...)`, or a list with one of these for each row of the prompt.
    """

    column: ClassVar[str] = "prob"

    def values(
        self, logits: Float[Tensor, "row pos d_vocab"], tokens: AnswerTokens
    ) -> Float[Tensor, " row"]:
        """`p(answer)`, between 0 and 1."""
        return _log_probs(logits, tokens).exp()


@savable
@dataclass(frozen=True)
class LogProb(_AnswerMeasure):
    """The natural logarithm of `Prob`; column `logprob`.

    Attributes:
        answer: As in `Prob`.
    """

    column: ClassVar[str] = "logprob"

    def values(
        self, logits: Float[Tensor, "row pos d_vocab"], tokens: AnswerTokens
    ) -> Float[Tensor, " row"]:
        """`log p(answer)`, in nats."""
        return _log_probs(logits, tokens)


@savable
@dataclass(frozen=True)
class Rank(_AnswerMeasure):
    """How many tokens are more likely than the answer's first one; column `rank`, 0 for the best.

    Attributes:
        answer: As in `Prob`; of `AnyOf(...)` the most likely counts.
    """

    differentiable: ClassVar[bool] = False
    column: ClassVar[str] = "rank"

    def values(self, logits: Float[Tensor, "row pos d_vocab"], tokens: AnswerTokens) -> Tensor:
        """The rank, from 0, `[row]` of integers."""
        last = _last(logits)
        return (last > tokens.best(last)[:, None]).sum(-1)


@savable
@dataclass(frozen=True)
class LogitDiff(NextTokenMeasure):
    """The logit of one answer less that of another; column `logit_diff`.

    Equal to the difference of their log probabilities. Of `AnyOf(...)` it is `log sum exp`.

    Attributes:
        answer: As in `Prob`.
        other: Likewise.
    """

    column: ClassVar[str] = "logit_diff"
    answer: Answers
    other: Answers

    def __post_init__(self):
        _freeze(self, "answer", "other")

    def resolved(self, vlm: HookedModel, prompt: Prompt) -> tuple[AnswerTokens, AnswerTokens]:
        """The first tokens of both.

        Raises:
            MeasureError: They begin with the same token.
        """
        check_apart(vlm, self.answer, self.other, len(prompt))
        return tuple(first_tokens(vlm, a, len(prompt)) for a in (self.answer, self.other))

    def values(
        self,
        logits: Float[Tensor, "row pos d_vocab"],
        tokens: tuple[AnswerTokens, AnswerTokens],
    ) -> Float[Tensor, " row"]:
        """`logit(answer) - logit(other)`."""
        answer, other = (t.log_total(_last(logits)) for t in tokens)
        return answer - other


@savable
@dataclass(frozen=True)
class KL(NextTokenMeasure):
    """How far the next token's distribution is from another: `KL(to || run)`; column `kl`.

    Attributes:
        to: `"plain"`, the run without the change that is measured; or logits, `[d_vocab]` for all
            rows of the prompt or `[row, d_vocab]`.
    """

    column: ClassVar[str] = "kl"
    to: str | Tensor | FrozenTensor = PLAIN

    def __post_init__(self):
        if isinstance(self.to, Tensor):
            object.__setattr__(self, "to", FrozenTensor(self.to))
        if not isinstance(self.to, FrozenTensor) and self.to != PLAIN:
            raise MeasureError(f"KL is taken to {PLAIN!r} or to logits, not to {self.to!r}.")

    def bind(self, vlm: HookedModel, prompt: Prompt) -> BoundKL:
        """This measure on a model and a prompt.

        Raises:
            MeasureError: Logits of another shape.
        """
        return BoundKL(self, vlm, prompt, self.resolved(vlm, prompt))

    def resolved(self, vlm: HookedModel, prompt: Prompt) -> _Reference:
        """The distribution that runs are compared with."""
        if not isinstance(self.to, FrozenTensor):
            return _Reference(vlm, prompt)
        logits, (n_rows, d_vocab) = self.to.data, (len(prompt), vlm.cfg.d_vocab)
        if tuple(logits.shape) not in ((d_vocab,), (1, d_vocab), (n_rows, d_vocab)):
            raise MeasureError(
                f"KL(to=...) takes logits [{d_vocab}] or [{n_rows}, {d_vocab}] of this model and "
                f"prompt; it got {list(logits.shape)}."
            )
        return _Reference(vlm, prompt, logits.reshape(-1, d_vocab))

    def values(
        self, logits: Float[Tensor, "row pos d_vocab"], tokens: _Reference
    ) -> Float[Tensor, " row"]:
        """`sum p_to (log p_to - log p_run)`, in nats."""
        run = _last(logits).log_softmax(-1)
        to = _wide(tokens.logits().to(run.device)).log_softmax(-1).to(run)
        terms = to.exp() * (to - run)
        return terms.masked_fill(to.exp() == 0, 0.0).sum(-1)


@dataclass
class _Reference:
    """Logits to compare with; of the plain run, made when first asked for."""

    vlm: HookedModel
    prompt: Prompt
    given: Tensor | None = field(default=None, repr=False)

    def logits(self) -> Float[Tensor, "row d_vocab"]:
        if self.given is None:
            with torch.no_grad():
                self.keep(at_last(self.vlm.run(self.prompt), self.prompt.layouts))
        return self.given

    def keep(self, logits: Float[Tensor, "row pos d_vocab"]) -> None:
        self.given = logits[:, -1].detach().clone()


class BoundKL(BoundLogits):
    """`KL` on a model and a prompt; the plain run of a sweep is its reference."""

    def of_plain(self, baseline: Baseline | None) -> list[Record]:
        """From the recorded logits, or from a run."""
        if self.measure.to == PLAIN and baseline is not None:
            self.tokens.keep(at_last(baseline.logits, self.prompt.layouts))
        return super().of_plain(baseline)


def _freeze(measure: Any, *names: str) -> None:
    for name in names:
        value = getattr(measure, name)
        if isinstance(value, list):
            object.__setattr__(measure, name, tuple(value))


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _last(logits: Float[Tensor, "row pos d_vocab"]) -> Float[Tensor, "row d_vocab"]:
    return _wide(logits[:, -1])


def _log_probs(
    logits: Float[Tensor, "row pos d_vocab"], tokens: AnswerTokens
) -> Float[Tensor, " row"]:
    return tokens.log_total(_last(logits).log_softmax(-1))
