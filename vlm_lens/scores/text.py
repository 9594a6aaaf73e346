"""Scores as text and as a small table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def as_text(head: str, lines: Sequence[str], largest: pd.DataFrame | None) -> str:
    """One line that says what they are, a line each about them, and the largest."""
    shown = [] if largest is None else [_short(largest).to_string(index=False)]
    return "\n".join([head, *(f"  {line}" for line in lines), *shown])


def as_html(head: str, lines: Sequence[str], largest: pd.DataFrame | None) -> str:
    """The same as HTML."""
    about = "".join(f"<div>{escape(line)}</div>" for line in lines)
    table = "" if largest is None else _short(largest).to_html(index=False, border=0)
    return f"<div><b>{escape(head)}</b>{about}{table}</div>"


def abridged(values: Sequence[Any]) -> str:
    """Values with commas between, the first eight of many."""
    shown = ", ".join(map(str, values[:8]))
    return shown + (f", ... ({len(values)} in all)" if len(values) > 8 else "")


def told(value: Any) -> str:
    """A fact about scores, a number as tables show it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(table: pd.DataFrame) -> pd.DataFrame:
    keep = [c for c in table.columns if c != "pixels" and table[c].notna().any()]
    table = table[keep].copy()
    for column in table.columns:
        if table[column].dtype.kind == "f":
            table[column] = table[column].map(lambda v: f"{v:.4g}")
    return table
