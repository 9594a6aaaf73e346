"""A document of text, tables and figures, written as an HTML page and as Markdown."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlm_lens.figures.figure_html import figure_html
from vlm_lens.report.page import Section, html_table, page, text_cell

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Beside", "Document", "Figures", "Part", "Table", "to_html", "to_markdown"]


@dataclass(frozen=True)
class Beside:
    """A number and the paper's, where the paper has any in this row: one cell."""

    here: str
    paper: str

    def __str__(self) -> str:
        return f"{self.here} / {self.paper}" if self.paper else self.here


@dataclass(frozen=True)
class Table:
    """A table of texts and numbers.

    Attributes:
        columns: The headings.
        rows: The cells.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, eq=False)
class Figures:
    """Figures side by side; Markdown names the files where they are."""

    drawn: Sequence[go.Figure]
    files: Sequence[str]


@dataclass(frozen=True)
class Part:
    """A heading with what stands below it: texts, lists of texts, tables, figures.

    Attributes:
        title: The heading.
        blocks: What follows, in order.
        short: Its name in the list of contents; a part without one is a part of the part before.
    """

    title: str
    blocks: Sequence[str | list[str] | Table | Figures]
    short: str = ""


@dataclass(frozen=True)
class Document:
    """A title, a first paragraph, and parts."""

    title: str
    lead: str
    parts: list[Part] = field(default_factory=list)


def to_html(document: Document) -> str:
    """A page that needs no other file."""
    sections: list[Section] = []
    for part in document.parts:
        body = "".join(_html(block) for block in part.blocks)
        if part.short or not sections:
            sections.append(Section(part.title, body, part.short))
        else:
            last = sections.pop()
            body = f"{last.body}<h3>{html.escape(part.title)}</h3>{body}"
            sections.append(Section(last.title, body, last.short))
    lead = f'<p class="lead">{html.escape(document.lead)}</p>'
    return page(document.title, lead, sections)


def to_markdown(document: Document) -> str:
    """The same as Markdown; figures are links to their files."""
    lines = [f"# {document.title}", "", document.lead, ""]
    for part in document.parts:
        lines += [f"{'##' if part.short else '###'} {part.title}", ""]
        for block in part.blocks:
            lines += [*_markdown(block), ""]
    return "\n".join(lines)


def _html(block: Any) -> str:
    if isinstance(block, str):
        return f"<p>{html.escape(block)}</p>"
    if isinstance(block, list):
        return "<ul>" + "".join(f"<li>{html.escape(one)}</li>" for one in block) + "</ul>"
    if isinstance(block, Figures):
        drawn = "".join(figure_html(one) for one in block.drawn)
        return f"<div class='pair'>{drawn}</div>" if len(block.drawn) > 1 else drawn
    rows = [[_cell(one, name=i == 0) for i, one in enumerate(row)] for row in block.rows]
    return html_table(block.columns, rows)


def _cell(value: Any, *, name: bool) -> str:
    if isinstance(value, Beside):
        soft = f' <span class="soft">/ {html.escape(value.paper)}</span>' if value.paper else ""
        return f'<td class="text">{html.escape(value.here)}{soft}</td>'
    return text_cell(str(value), name=name)


def _markdown(block: Any) -> list[str]:
    if isinstance(block, str):
        return [block]
    if isinstance(block, list):
        return [f"- {one}" for one in block]
    if isinstance(block, Figures):
        return ["Figures: " + ", ".join(f"[{name}]({name})" for name in block.files)]
    clean: Callable[[Any], str] = lambda v: str(v).replace("|", "\\|").replace("\n", "↵")  # noqa: E731
    lines = [" | ".join(map(clean, block.columns)), " | ".join(["---"] * len(block.columns))]
    lines += [" | ".join(map(clean, row)) for row in block.rows]
    return [f"| {line} |" for line in lines]
