"""What one token, said to every query, would get: the baselines of a guess.

Judged by the rule that judges the methods, under which a short token may be right for many labels.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.recipes.parts.scoring import answer_token, as_compared, round_trip
from vlm_lens.tasks import Task
from vlm_lens.terms import BEST_TOKEN, MAJORITY

__all__ = ["best_token", "constant_answers", "majority_token"]


def constant_answers(vlm: HookedVLM, task: Task, *, ignore_case: bool = False) -> dict[str, Tensor]:
    """The token ids that the baselines say to the test rows, by method.

    Args:
        vlm: The HookedVLM, for its tokenizer.
        task: The task; without validation rows there is no best token.
        ignore_case: Whether answers are compared without case.
    """
    tokens = {MAJORITY: majority_token(vlm, task)}
    if task.validation:
        tokens[BEST_TOKEN] = best_token(vlm, task, ignore_case=ignore_case)
    return {method: torch.full((len(task.test),), token) for method, token in tokens.items()}


def majority_token(vlm: HookedVLM, task: Task) -> int:
    """The first token of the test rows' commonest label; of several the first."""
    return answer_token(vlm, Counter(row.output for row in task.test).most_common(1)[0][0])


def best_token(vlm: HookedVLM, task: Task, *, ignore_case: bool = False) -> int:
    """The token that is right for most validation rows by the prefix rule; of equals the lowest id.

    Args:
        vlm: The HookedVLM, for its tokenizer.
        task: The task.
        ignore_case: Whether answers are compared without case.
    """
    wholes: dict[str, set[int]] = defaultdict(set)  # text -> rows with such an answer
    starts: dict[str, set[int]] = defaultdict(set)  # text -> rows with an answer that begins so
    for i, row in enumerate(task.validation):
        for answer in row.answers:
            label = as_compared(round_trip(vlm, answer), ignore_case)
            wholes[label].add(i)
            for end in range(1, len(label) + 1):
                starts[label[:end]].add(i)

    def hits(token: int) -> int:
        text = as_compared(texts[token], ignore_case)
        found = set(starts.get(text, ()))
        for end in range(1, len(text)):
            found |= wholes.get(text[:end], set())
        return len(found)

    texts = _texts(vlm.tokenizer, vlm.cfg.d_vocab)
    return max(range(len(texts)), key=hits)


@lru_cache(maxsize=2)
def _texts(tokenizer: Any, d_vocab: int) -> list[str]:
    """Every token's text; of 260,000 tokens it takes a second or two, so it is kept."""
    ids = [[i] for i in range(min(len(tokenizer), d_vocab))]
    return tokenizer.batch_decode(ids, skip_special_tokens=True)
