"""The table of every type that transformers maps to image-text-to-text, tried on a tiny model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.docs.kept import kept

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))  # the tiny models' home

if TYPE_CHECKING:
    from reach.trial import Trial

HEAD = (
    "| type | text blocks | tower | projector | geometry | replay | checks | notes |",
    "|---|---|---|---|---|---|---|---|",
)
_LONGEST = 160


def line(trial: Trial) -> str:
    """A type's line."""
    if not trial.level and trial.failed:
        return f"| {trial.model_type} | **crashes** | | | | | | {_short(trial.failed[0])} |"
    if not trial.level:
        return f"| {trial.model_type} | refused | | | | | | {_short(trial.notes)} |"
    passed, applied = trial.passed
    said = [*(f"**{f}**" for f in trial.failed), trial.notes]
    cells = (
        trial.model_type, trial.level, trial.tower or "–", trial.projector or "–",
        _short(trial.geometry), _short(trial.replay), f"{passed} of {applied}",
        _short("; ".join(filter(None, said))),
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def counts(trials: Sequence[Trial]) -> str:
    """How many types conform, at which level."""
    good = [t for t in trials if t.conforms]
    by_level = ", ".join(
        f"{sum(t.level == level for t in good)} {level}"
        for level in ("full", "branches", "residual")
    )
    whole = sum(bool(t.tower and t.projector) for t in good)
    refused = sum(not t.level for t in trials)
    return (
        f"Of {len(trials)} types {len(good)} conform ({by_level}), {whole} of them with points in "
        f"tower and projector; {len(trials) - len(good) - refused} show what some checks find "
        f"wrong, and {refused} are refused."
    )


def page() -> str:
    """The table."""
    from reach.builder import TYPES
    from reach.trial import Trial, tried

    trials = [Trial(**kept(f"reach {t}", lambda t=t: asdict(tried(t)))) for t in TYPES]
    return "\n".join([counts(trials), "", *HEAD, *map(line, trials), ""])


def _short(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= _LONGEST else text[:_LONGEST].rsplit(" ", 1)[0] + " ..."
