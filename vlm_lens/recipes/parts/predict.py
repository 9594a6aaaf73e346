"""What many prompts say under many interventions: the next token, or a given answer as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlm_lens.interventions.base import OfRows, compose
from vlm_lens.measures.answer_prob import AnswerProb
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.reading.many import batches

__all__ = ["first_tokens", "whole_answers"]


def first_tokens(
    vlm: HookedVLM,
    prompts: Sequence[Any],
    interventions: Sequence[Any] = ((),),
    *,
    batch_size: int = 32,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Int[Tensor, "interventions prompts"]:
    """The most likely next token of each prompt: what greedy generation of one token gives.

    Each batch of prompts is run once as it is, and of every intervention only what it can change is
    computed; see `HookedVLM.sweep`.

    Args:
        vlm: A HookedVLM.
        prompts: Texts or RawPrompts; they run in left-padded batches of like length.
        interventions: One entry a run of all prompts; `()` changes nothing.
        batch_size: How many prompts run together.
        progress: What the batches are passed through, for a progress bar.
    """
    runs = [compose(one) for one in interventions]
    found = torch.zeros(len(runs), len(prompts), dtype=torch.long)
    for batch in progress(list(batches(vlm, list(prompts), batch_size))):
        edits = [OfRows(run, batch.rows, len(prompts)) for run in runs]
        swept = vlm.sweep(vlm.as_prompt(batch.prompts), edits, progress=False)
        found[:, list(batch.rows)] = swept.stack("token_id").reshape(len(runs), -1)
    return found


def whole_answers(
    vlm: HookedVLM,
    prompts: Sequence[Any],
    answers: Sequence[Sequence[str]],
    interventions: Sequence[Any] = ((),),
    *,
    batch_size: int = 32,
    progress: Callable[[Iterable], Iterable] = iter,
) -> tuple[Float[Tensor, "interventions prompts"], Bool[Tensor, "interventions prompts"]]:
    """How likely each prompt's answer is, teacher-forced, and whether greedy decoding says it.

    Args:
        vlm: A HookedVLM.
        prompts: Texts or RawPrompts; they run in left-padded batches of like length.
        answers: For each prompt the label and its aliases.
        interventions: One entry a run of all prompts; `()` changes nothing.
        batch_size: How many prompts run together.
        progress: What the batches are passed through, for a progress bar.

    Returns:
        The geometric mean of the probabilities of the answer's tokens, 0 to 1, of the label or
        alias for which it is largest; and whether the tokens of any of them are the most likely
        ones, each after those before it.
    """
    runs = [compose(one) for one in interventions]
    owner = [i for i, accepted in enumerate(answers) for _ in accepted]
    each = [answer for accepted in answers for answer in accepted]
    size = len(runs), len(prompts)
    probs, greedy = torch.zeros(size), torch.zeros(size, dtype=torch.bool)
    asked = [prompts[i] for i in owner]
    for batch in progress(list(batches(vlm, asked, batch_size))):
        measure = AnswerProb([each[i] for i in batch.rows])
        whose = tuple(owner[i] for i in batch.rows)
        edits = [OfRows(run, whose, len(prompts)) for run in runs]
        swept = vlm.sweep(vlm.as_prompt(batch.prompts), edits, measure=measure, progress=False)
        likely = swept.stack("answer_prob").reshape(len(runs), -1)
        said = swept.stack("answer_greedy").reshape(len(runs), -1)
        for column, i in enumerate(batch.rows):
            probs[:, owner[i]] = torch.maximum(probs[:, owner[i]], likely[:, column])
            greedy[:, owner[i]] |= said[:, column]
    return probs, greedy
