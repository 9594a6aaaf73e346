"""The language model's own samples, on which it must stay what it was.

The loss is the divergence of its next-token distribution from the frozen model's on the same
sample, with and without an unrelated picture in front.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vlm_lens.zoo.smol.language import Language
from vlm_lens.zoo.smol.sentences import STARTS

__all__ = ["divergence", "own_samples"]

_END_OF_TEXT = 0


@torch.no_grad()
def own_samples(
    language: Language,
    merged: Mapping[str, Tensor],
    tokenizer: Any,
    count: int,
    length: int,
    seed: int,
    *,
    batch: int = 1024,
) -> Tensor:
    """Draw continuations at temperature 1, `[sample, length]`.

    A third begins at the end of a text, a third at a common first word, a third at any token.

    Args:
        language: The language model.
        merged: Its maps.
        tokenizer: A tokenizer of the library tokenizers.
        count: How many.
        length: How long, the beginning included.
        seed: Of the draws.
        batch: How many at once.
    """
    device = language.embed.device
    generator = torch.Generator(device).manual_seed(seed)
    host = torch.Generator().manual_seed(seed)
    starts = [tokenizer.encode(s, add_special_tokens=False).ids for s in STARTS]
    found = []
    for begin in range(0, count, batch):
        rows = []
        for i in range(begin, min(begin + batch, count)):
            word = starts[int(torch.randint(len(starts), (), generator=host))]
            token = int(torch.randint(17, len(language.embed), (), generator=host))
            rows.append([[_END_OF_TEXT], word, [token]][i % 3])
        ids = torch.zeros(len(rows), length, dtype=torch.long, device=device)
        given = torch.tensor([len(r) for r in rows], device=device)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        for t in range(1, length):
            last = language.read(merged, language.embed[ids[:, :t]]).last[:, -1]
            odds = language.logits(last, merged["o"].dtype).float().softmax(-1)
            drawn = torch.multinomial(odds, 1, generator=generator)[:, 0]
            ids[:, t] = torch.where(given > t, ids[:, t], drawn)
        found.append(ids)
    return torch.cat(found)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of logits, the mean over predictions."""
    return (
        functional.kl_div(
            student.float().log_softmax(-1),
            teacher.float().log_softmax(-1),
            log_target=True,
            reduction="none",
        )
        .sum(-1)
        .mean()
    )
