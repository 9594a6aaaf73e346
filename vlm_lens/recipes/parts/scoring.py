"""When an answer counts as right, how often it is, and how sure that is.

The rule is that of the code of Luo et al. 2025 (arXiv 2410.22330): the one generated token and the
label, stripped, must begin one another. It is lenient (a token `A` is right for every label that
begins so), and a strict rule stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.recipes.parts.predict import first_tokens
from vlm_lens.scores.statistics import tails

__all__ = [
    "Scores",
    "accuracy",
    "answer_token",
    "as_compared",
    "balanced",
    "bootstrap",
    "over_seeds",
    "prefix_match",
    "round_trip",
    "score",
]


def prefix_match(
    prediction: str, answers: str | Iterable[str], *, ignore_case: bool = False
) -> bool:
    """Whether a prediction and one of the answers begin one another, and neither is empty.

    Args:
        prediction: What the model said.
        answers: The label, or the label and its aliases: each counts.
        ignore_case: Whether upper and lower case are the same.
    """
    predicted = as_compared(prediction, ignore_case)
    for answer in [answers] if isinstance(answers, str) else answers:
        label = as_compared(answer, ignore_case)
        if predicted and label and (predicted.startswith(label) or label.startswith(predicted)):
            return True
    return False


@dataclass(frozen=True, eq=False)
class Scores:
    """Predictions and whether they are right; the last axis goes over prompts.

    Attributes:
        predictions: The predicted tokens as text.
        correct: Right by the prefix rule.
        strict: Right by the strict rule: it is the first token of an answer.
    """

    predictions: np.ndarray
    correct: np.ndarray
    strict: np.ndarray

    def __getitem__(self, run: int) -> Scores:
        """The scores of one of several runs."""
        return Scores(self.predictions[run], self.correct[run], self.strict[run])


def score(
    vlm: HookedVLM,
    tokens: Int[Tensor, "*runs prompts"],
    answers: Sequence[Sequence[str]],
    *,
    ignore_case: bool = False,
) -> Scores:
    """Judges one predicted token a prompt.

    Args:
        vlm: The HookedVLM, for its tokenizer.
        tokens: The predicted token ids, of one run over the prompts or of several.
        answers: For each prompt the label and its aliases.
        ignore_case: Whether upper and lower case are the same.
    """
    labels = {a: round_trip(vlm, a) for accepted in answers for a in accepted}
    firsts = {a: {as_compared(f, ignore_case) for f in _first_pieces(vlm, a)} for a in labels}

    @cache
    def judge(token: int, accepted: tuple[str, ...]) -> tuple[str, bool, bool]:
        text = vlm.tokenizer.decode([token], skip_special_tokens=True)
        known = [labels[a] for a in accepted]
        bare = as_compared(text, ignore_case)
        strict = bool(bare) and any(bare in firsts[a] for a in accepted)
        return text, prefix_match(text, known, ignore_case=ignore_case), strict

    tokens = torch.as_tensor(tokens)
    flat = tokens.reshape(-1, len(answers)).tolist()
    judged = [judge(t, tuple(a)) for run in flat for t, a in zip(run, answers, strict=True)]
    predicted, correct, strict = (
        np.array(column).reshape(tokens.shape) for column in zip(*judged, strict=True)
    )
    return Scores(predicted, correct, strict)


def accuracy(
    vlm: HookedVLM,
    prompts: Sequence[Any],
    answers: Sequence[Sequence[str]],
    *,
    interventions: Any = (),
    ignore_case: bool = False,
    batch_size: int = 32,
) -> float:
    """The share of prompts whose next token is right by the prefix rule.

    Args:
        vlm: A HookedVLM.
        prompts: Texts or RawPrompts.
        answers: For each prompt the label and its aliases.
        interventions: What to change.
        ignore_case: Whether upper and lower case are the same.
        batch_size: How many prompts run together.
    """
    tokens = first_tokens(vlm, prompts, [interventions], batch_size=batch_size)[0]
    return float(score(vlm, tokens, answers, ignore_case=ignore_case).correct.mean())


def bootstrap(
    correct: Sequence[np.ndarray], *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """An interval for the mean over tasks of accuracies, by resampling queries within each task.

    Tasks are resampled independently of each other, also those of a domain, which share queries.
    Of the resampled means `vlm_lens.scores.statistics.tails` are taken. With differences of two
    methods in place of accuracies it is a paired bootstrap. NaN where a
    task has one query, which says nothing of how queries vary.

    Args:
        correct: For each task, for each query, the share of seeds in which it was right.
        resamples: How often queries are drawn.
        level: How much of the distribution the interval holds.
        seed: The seed of the draws.
    """
    if min(map(len, correct)) < 2:
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    means = np.mean(
        [
            one[generator.integers(0, len(one), (resamples, len(one)))].mean(1)
            for one in (np.asarray(c, dtype=float) for c in correct)
        ],
        axis=0,
    )
    low, high = np.quantile(means, tails(level, sum(map(len, correct)), len(correct)))
    return float(low), float(high)


def balanced(correct: np.ndarray, labels: Sequence[str]) -> float:
    """Balanced accuracy: the mean over labels of the share of their prompts that are right.

    A guess of the commonest label, right for half of all prompts, gets 1 / labels.

    Args:
        correct: For each prompt, whether it is right.
        labels: For each prompt, its label.
    """
    labels, correct = np.asarray(labels), np.asarray(correct, dtype=float)
    return float(np.mean([correct[labels == label].mean() for label in dict.fromkeys(labels)]))


def over_seeds(accuracies: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Student's t-interval for the mean over seeds, within 0 and 1; NaN where there is one seed.

    Args:
        accuracies: The accuracy of each seed.
        level: How much of the distribution the interval holds.
    """
    from scipy import stats

    values = np.asarray(accuracies, dtype=float)
    if len(values) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return max(0.0, float(values.mean() - half)), min(1.0, float(values.mean() + half))


def as_compared(text: str, ignore_case: bool) -> str:
    """A text as the prefix rule sees it: stripped, and in lower case if case is ignored."""
    return text.strip().lower() if ignore_case else text.strip()


def round_trip(vlm: HookedVLM, answer: str) -> str:
    """An answer as its tokens spell it, which is how the paper's code reads a label."""
    return vlm.tokenizer.decode(vlm.to_tokens(answer), skip_special_tokens=True)


def answer_token(vlm: HookedVLM, answer: str) -> int:
    """The first token of an answer as it stands after the delimiter, `A:`.

    Some tokenizers split a text otherwise where it begins (sentencepiece writes a space before
    it); where the delimiter and the answer share a token, it is the answer's first token alone.

    Args:
        vlm: The HookedVLM, for its tokenizer.
        answer: The answer.
    """
    before, whole = vlm.to_tokens("A:"), vlm.to_tokens(f"A:{answer}")
    after = [i for i in whole[len(before) :] if vlm.tokenizer.decode([i]).strip()]
    return after[0] if whole[: len(before)] == before and after else vlm.to_first_token(answer)


def _first_pieces(vlm: HookedVLM, answer: str) -> set[str]:
    """The first token of an answer alone, and after the delimiter."""
    tokens = {vlm.to_first_token(answer), answer_token(vlm, answer)}
    return {vlm.tokenizer.decode([t], skip_special_tokens=True) for t in tokens}
