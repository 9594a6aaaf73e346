"""The probability of an answer of several tokens, read with the answer itself before each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from vlm_lens.engine.baseline import Baseline
from vlm_lens.engine.continuing import Continuation
from vlm_lens.engine.replay import Replayed, ReplayVariant, replay
from vlm_lens.engine.start import start_of
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.measures.answers import Answers, AnyOf, answer_ids, per_row
from vlm_lens.measures.base import BoundMeasure, Measure, MeasureError, Record
from vlm_lens.measures.generated import logits_of_whole_prompt
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.serial import savable


@savable
@dataclass(frozen=True)
class AnswerProb(Measure):
    """The probability of a whole answer, teacher-forced.

    Columns `answer_prob`, `answer_logprob`, and `answer_greedy`.

    `answer_logprob` is the mean over the answer's tokens of `log p(token | prompt, answer so far)`,
    and `answer_prob` its exponential: the geometric mean, so that answers of different lengths can
    be compared. With `normalize=False` they are the sum, and the probability itself.
    `answer_greedy` says whether each token is the most likely one after those before it: whether
    greedy decoding says the answer.

    Attributes:
        answer: A text, a token id, or a list with one for each row of the prompt, where a tuple of
            ids is an answer too. A leading space is part of a text.
        normalize: Whether the number of tokens is divided out.
    """

    answer: Answers | Sequence[tuple[int, ...]]
    normalize: bool = True

    def __post_init__(self):
        if isinstance(self.answer, list):
            object.__setattr__(self, "answer", tuple(self.answer))

    def bind(self, vlm: HookedModel, prompt: Prompt) -> BoundMeasure:
        """This measure on a model and a prompt.

        Raises:
            MeasureError: Another number of answers than rows, or no such tokens.
            PromptError: The model cannot number so many positions.
        """
        answers = per_row(self.answer, len(prompt))
        if any(isinstance(answer, AnyOf) for answer in answers):
            raise MeasureError("AnswerProb follows one answer a row: measure each of AnyOf(...).")
        ids = [answer_ids(vlm, answer) for answer in answers]
        vlm.prompts.check_length(prompt.inputs, max(map(len, ids)) - 1)
        return _BoundAnswer(self, vlm, prompt, ids)


class _BoundAnswer(BoundMeasure):
    columns = ("answer_prob", "answer_logprob", "answer_greedy")

    def __init__(
        self, measure: AnswerProb, vlm: HookedModel, prompt: Prompt, answers: list[list[int]]
    ):
        self._measure, self._vlm, self._prompt = measure, vlm, prompt
        self._lengths = torch.tensor([len(answer) for answer in answers])
        width = int(self._lengths.max())
        # rows that are at their end read their last token again, which counts for nothing
        filled = [answer + answer[-1:] * (width - len(answer)) for answer in answers]
        self._tokens = torch.tensor(filled)  # [row, token]
        self.goes_on = width > 1

    def of_plain(self, baseline: Baseline | None) -> list[Record]:
        if baseline is None:
            return self.of_run(())
        plain = ReplayVariant((), start_of((), baseline))
        return self.of_replay(baseline, replay(baseline, [plain], keep_cache=self.goes_on))[0]

    def of_replay(self, baseline: Baseline, replayed: Replayed) -> list[list[Record]]:
        mask = self._prompt.inputs.get("attention_mask")
        continuation = Continuation(self._vlm.hf_model, baseline, replayed, mask)
        n_variants, steps = len(replayed.logits), []
        tokens = self._tokens.to(continuation.logits.device).repeat(n_variants, 1)
        for step in range(tokens.shape[1]):
            if step:
                continuation.feed(tokens[:, step - 1])
            steps.append(_scored(continuation.logits, tokens[:, step]))
        scores = torch.stack(steps, -1).unflatten(1, (n_variants, -1))
        return [self._records(mine) for mine in scores.unbind(1)]

    def of_run(self, interventions: Any) -> list[Record]:
        """Forces the answer in a generation, and reads the model's own logits before that."""
        steps: list[Tensor] = []

        def read(logits: Tensor, hook: Any) -> None:
            step = len(steps)
            if step < self._tokens.shape[1]:
                steps.append(_scored(logits[:, -1], self._tokens[:, step].to(logits.device)))

        forced = LogitsProcessorList([_Forced(self._tokens, self._prompt.length)])
        with self._vlm.intervening(interventions), self._vlm.hooks([("hook_logits", read)]):
            made = self._vlm.generate(
                self._prompt,
                max_new_tokens=self._tokens.shape[1],
                logits_processor=forced,
                eos_token_id=-1,  # an answer may go on after a token that ends a text
                **logits_of_whole_prompt(self._vlm, self._prompt, interventions),
            )
        if not torch.equal(made.tokens.cpu()[:, : len(steps) - 1], self._tokens[:, :-1]):
            raise MeasureError(
                f"{type(self._vlm.hf_model).__name__} generates by code of its own that leaves "
                "out what forces an answer on it (logits_processor), so no answer of several "
                "tokens can be followed: measure Prob or LogProb of its first token."
            )
        return self._records(torch.stack(steps, -1))

    def _records(self, scores: Tensor) -> list[Record]:
        """From what `_scored` gave for each token, `[2, row, token]`."""
        log_probs, best = scores
        lengths = self._lengths.to(log_probs.device)
        counts = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths[:, None]
        total = log_probs.masked_fill(~counts, 0.0).sum(-1)
        total = total / lengths if self._measure.normalize else total
        greedy = best.masked_fill(~counts, 1.0).bool().all(-1)
        return [
            dict(zip(self.columns, row, strict=True))
            for row in zip(total.exp().tolist(), total.tolist(), greedy.tolist(), strict=True)
        ]


def _scored(logits: Tensor, tokens: Tensor) -> Tensor:
    """`log p(token)` of each row, and 1 where no token is more likely, `[2, row]`."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probs = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    return torch.stack([log_probs, (logits.argmax(-1) == tokens).to(log_probs)])


class _Forced(LogitsProcessor):
    """Leaves one token of each row to choose, whatever the model's other processors made."""

    def __init__(self, tokens: Tensor, length: int):
        self._tokens, self._length, self._step = tokens, length, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = self._tokens[:, min(self._step, self._tokens.shape[1] - 1)]
        self._step += 1
        forced = torch.full_like(scores, -torch.inf)
        return forced.scatter(1, tokens[:, None].to(scores.device), 0.0)
