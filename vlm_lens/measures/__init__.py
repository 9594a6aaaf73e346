"""What is asked of the output of a run, as values."""

from __future__ import annotations

from vlm_lens.measures.answer_prob import AnswerProb
from vlm_lens.measures.answers import AnyOf
from vlm_lens.measures.base import (
    BoundLogits,
    BoundMeasure,
    LogitMeasure,
    Measure,
    MeasureError,
    at_last,
)
from vlm_lens.measures.basic import Custom, Logits, TokenScores, Top1
from vlm_lens.measures.capture import Capture
from vlm_lens.measures.generated import GeneratedTokens
from vlm_lens.measures.named import as_measure
from vlm_lens.measures.next_token import KL, LogitDiff, LogProb, Prob, Rank

__all__ = [
    "KL",
    "AnswerProb",
    "AnyOf",
    "BoundLogits",
    "BoundMeasure",
    "Capture",
    "Custom",
    "GeneratedTokens",
    "LogProb",
    "LogitDiff",
    "LogitMeasure",
    "Logits",
    "Measure",
    "MeasureError",
    "Prob",
    "Rank",
    "TokenScores",
    "Top1",
    "as_measure",
    "at_last",
]
