"""The table of transformers' causal language models, each tried on a tiny random model."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from scripts.docs.kept import kept

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))  # the tiny models' home

HEAD = ("| type | shown | why not more |", "|---|---|---|")
_LONGEST = 140


def line(model_type: str, level: str, why: str) -> str:
    """A type's line."""
    why = " ".join(why.split()).replace("|", "\\|")
    short = why if len(why) <= _LONGEST else why[:_LONGEST].rsplit(" ", 1)[0] + " ..."
    return f"| {model_type} | {level} | {short} |"


def text(found: Mapping[str, tuple[str, str]]) -> str:
    """The page: how many types show what, and a line each."""
    counts = Counter(level for level, _ in found.values())
    built = len(found) - counts["not built"]
    shown = ", ".join(f"{counts[level]} {level}" for level in ("full", "branches", "residual"))
    first = (
        f"Of {built} types that could be made small, {shown}; {counts['refused']} "
        f"are refused, and {counts['fails']} wrap and do not conform."
    )
    lines = [line(name, *row) for name, row in found.items()]
    return "\n".join([first, "", *HEAD, *lines, ""])


def page() -> str:
    """The table, made by trying every type."""
    from reach.causal import tried, types

    return text({n: tuple(kept(f"causal {n}", lambda n=n: tried(n))) for n in types()})
