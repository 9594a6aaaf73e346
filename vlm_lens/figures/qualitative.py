"""Outputs beside their pictures: as an HTML table, and as a figure that is saved like any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap

import pandas as pd
import plotly.graph_objects as go

from vlm_lens.figures.style import GRID, style

__all__ = ["outputs_figure", "outputs_html"]

_LINE_PX, _LETTERS = 62, 19  # of a line; a cell has two
_UNIT_PX = 108  # of x: room for the letters of a cell


@dataclass(frozen=True)
class _Line:
    """One query."""

    task: str
    given: str
    picture: str | None
    outputs: tuple[tuple[str, bool], ...]
    answer: str


def outputs_html(
    table: pd.DataFrame, pictures: pd.DataFrame, *, title: str, notes: Sequence[str] = ()
) -> str:
    """The table as HTML, pictures included.

    Args:
        table: A row for each output: `task`, `input`, `method`, `output`, `answer`, `right`.
        pictures: The pictures of the inputs that have one: `task`, `input`, and `picture` as a URI.
        title: What stands above.
        notes: What stands below.

    Returns:
        HTML that needs no other file; right outputs are bold and marked.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in _head(table))
    rows = []
    for line in _lines(table, pictures):
        picture = (
            ""
            if line.picture is None
            else f'<img src="{line.picture}" alt="{escape(line.given)}" height="56" '
            'style="vertical-align:middle">'
        )
        cells = "".join(
            f"<td>{'<b>' if right else ''}{escape(text) or '–'}{' ✓</b>' if right else ''}</td>"
            for text, right in line.outputs
        )
        rows.append(
            f"<tr><td>{escape(line.task)}</td><td>{picture} {escape(line.given)}</td>{cells}"
            f"<td>{escape(line.answer)}</td></tr>"
        )
    notes = "".join(f"<div><small>{escape(note)}</small></div>" for note in notes)
    return (
        f"<b>{escape(title)}</b><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>{notes}"
    )


def outputs_figure(
    table: pd.DataFrame, pictures: pd.DataFrame, *, source: str, query: str, layer: int
) -> go.Figure:
    """The table as a figure; pointing at an output shows the whole prompt.

    Args:
        table: As of `outputs_html`, and `prompt`.
        pictures: As of `outputs_html`.
        source: Where the task is read from.
        query: How queries are given.
        layer: The 0-based block that is patched.

    Returns:
        The figure; right outputs are bold and marked.
    """
    lines, head = list(_lines(table, pictures)), _head(table)
    count = len(lines)
    fig = go.Figure()
    xs = [0.0, 1.25, *(2.75 + 1.5 * i for i in range(len(head) - 2))]
    for x, name in zip(xs, head, strict=True):
        _write(fig, x, -0.75, f"<b>{escape(name)}</b>")
    hover: list[tuple[float, int, str]] = []
    for y, line in enumerate(lines):
        _write(fig, xs[0], y, escape(line.task))
        if line.picture is not None:
            fig.add_layout_image(
                source=line.picture, x=xs[1], y=y, sizex=0.5, sizey=0.84, xref="x", yref="y",
                xanchor="left", yanchor="middle", sizing="contain",
            )  # fmt: skip
        _write(fig, xs[1] + (0.56 if line.picture else 0), y, _short(line.given))
        mine = table[(table["task"] == line.task) & (table["input"] == line.given)]
        for x, (text, right), prompt in zip(xs[2:], line.outputs, mine["prompt"], strict=False):
            shown = f"<b>{_short(text)} ✓</b>" if right else _short(text) or "–"
            _write(fig, x, y, shown)
            whole = prompt if len(prompt) <= 700 else f"... {prompt[-700:]}"
            hover.append((x + 0.5, y, escape(whole).replace("\n", "<br>")))
        _write(fig, xs[-1], y, _short(line.answer))
        fig.add_hline(y=y - 0.5, line={"color": GRID, "width": 1})
    fig.add_scatter(
        x=[x for x, _, _ in hover], y=[y for _, y, _ in hover], mode="markers",
        marker={"size": 36, "opacity": 0}, showlegend=False,
        customdata=[text for _, _, text in hover], hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip
    style(
        fig, title=f"What the model says: {source} → {query}",
        subtitle=f"Patched after block {layer} (0-based); ✓: the output begins as the "
        "answer does", height=150 + _LINE_PX * (count + 1), width=round(_UNIT_PX * (xs[-1] + 1.55)),
    )  # fmt: skip
    bare = {"showgrid": False, "zeroline": False, "showticklabels": False, "ticks": ""}
    fig.update_xaxes(range=[-0.05, xs[-1] + 1.5], showline=False, **bare)
    fig.update_yaxes(range=[count - 0.5, -1.1], showline=False, **bare)
    fig.update_layout(hoverlabel_align="left", margin={"l": 20, "b": 20})
    return fig


def _head(table: pd.DataFrame) -> list[str]:
    return ["task", "query", *dict.fromkeys(table["method"]), "answer"]


def _lines(table: pd.DataFrame, pictures: pd.DataFrame) -> Iterator[_Line]:
    """Task by task; of each the queries first whose last output, the patched one, is right."""
    known = {(p.task, p.input): p.picture for p in pictures.itertuples()}
    for task, of_task in table.groupby("task", sort=False):
        lines = []
        for given, mine in of_task.groupby("input", sort=False):
            outputs = tuple(zip(mine["output"], mine["right"], strict=True))
            picture = known.get((task, given))
            lines.append(_Line(str(task), str(given), picture, outputs, mine["answer"].iloc[0]))
        yield from sorted(lines, key=lambda line: not line.outputs[-1][1])


def _write(fig: go.Figure, x: float, y: float, text: str) -> None:
    fig.add_annotation(
        x=x, y=y, text=text, showarrow=False, xanchor="left", yanchor="middle", align="left",
        font_size=13,
    )  # fmt: skip


def _short(text: str) -> str:
    lines = wrap(text.replace("\n", "⏎"), _LETTERS, max_lines=2, placeholder="…")
    return "<br>".join(map(escape, lines))
