"""An HTML page with everything inside: style, figures, the library that draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lens.figures.figure_html import COLOURS, SCRIPT, fading
from vlm_lens.keywords import Answering
from vlm_lens.storage.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Section", "code", "data_table", "page", "settings", "write_page"]

_CSS = (
    COLOURS
    + """* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
main { max-width: 1180px; margin: 0 auto; padding: 40px 28px 72px }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 12px; letter-spacing: -.01em }
h2 { font-size: 21px; margin: 52px 0 8px; padding-top: 14px; border-top: 1px solid var(--line) }
p, li { max-width: 74ch } p { margin: 8px 0 12px }
.lead { font-size: 17.5px } .soft, small, figcaption { color: var(--soft); font-size: 14px }
nav { margin: 18px 0 0; font-size: 14px; display: flex; flex-wrap: wrap; gap: 4px 16px }
nav a { white-space: nowrap }
a { color: var(--accent) }
.scroll { overflow-x: auto; margin: 14px 0 18px }
.more > figcaption { padding-right: 36px }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums }
th, td { padding: 6px; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: middle; white-space: nowrap }
th { font-weight: 600; color: var(--soft); border-bottom-width: 2px }
th.text, td.text { text-align: left }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--page) }
tr.mark td { background: linear-gradient(var(--mark), var(--mark)) var(--page); font-weight: 600 }
td .soft { font-size: 12px }
td img { display: block; border-radius: 4px; max-height: 56px; width: auto }
td.right { color: var(--accent); font-weight: 600 }
td.wrap { white-space: normal; overflow-wrap: break-word; max-width: 70ch;
  min-width: calc(12ch + 12px) }
td.name { min-width: min(21ch, 40vw) }
summary { cursor: pointer; color: var(--accent); margin: 10px 0 }
pre, code { font: 13.5px/1.5 ui-monospace, SFMono-Regular, Menlo, monospace }
pre { background: var(--panel); padding: 12px 14px; border-radius: 6px; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere }
figure { margin: 22px 0 26px; overflow-x: auto; min-width: 0 }
figcaption { max-width: 74ch; margin-bottom: 4px; position: sticky; left: 0 }
figcaption b { display: block; color: var(--ink); font-size: 16px }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(460px, 1fr)); gap: 0 22px }
@media (max-width: 560px) { .pair { grid-template-columns: 1fr } main { padding: 24px 16px }
  ul { padding-left: 22px } }
"""
)
_MANY = 32  # rows of a table; more are folded away
_BOXES = ".scroll, figure"  # what may be wider than the screen


@dataclass(frozen=True)
class Section(Answering):
    """A part of a page.

    Attributes:
        title: Its heading.
        body: Its content as HTML.
        short: Its name in the list of contents; the heading by default.
    """

    title: str
    body: str
    short: str = ""


def page(title: str, lead: str, sections: Iterable[Section]) -> str:
    """A whole page.

    Args:
        title: The title, plain text.
        lead: The first paragraph or more, as HTML.
        sections: What follows.

    Returns:
        HTML that needs no other file and no network.
    """
    from plotly.offline import get_plotlyjs

    sections = list(sections)
    links = "".join(
        f'<a href="#s{i}">{escape(s.short or s.title)}</a>' for i, s in enumerate(sections)
    )
    body = "".join(
        f'<section id="s{i}"><h2>{escape(s.title)}</h2>{s.body}</section>'
        for i, s in enumerate(sections)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}</style>"
        f"<script>{get_plotlyjs()}</script></head><body><main>"
        f"<h1>{escape(title)}</h1>{lead}<nav>{links}</nav>{body}"
        f"</main><script>{SCRIPT}</script>{fading(_BOXES)}</body></html>"
    )


def write_page(path: str | Path, title: str, lead: str, sections: Iterable[Section]) -> Path:
    """Writes a page.

    Args:
        path: The file.
        title: As in `page`.
        lead: As in `page`.
        sections: As in `page`.

    Returns:
        The file.
    """
    return write_whole(path, page(title, lead, sections))


def data_table(
    table: pd.DataFrame, *, mark: Callable[[Mapping[str, Any]], bool] = lambda row: False
) -> str:
    """A table that scrolls sideways rather than being cut off.

    Args:
        table: The table; numbers are shown with two decimals, or the first digit that is not 0.
        mark: Which rows are shown with emphasis.
    """
    kinds = {c: "" if table[c].dtype.kind in "iuf" else ' class="text"' for c in table.columns}
    head = "".join(f"<th{kinds[c]}>{escape(str(c))}</th>" for c in table.columns)
    lines = []
    for row in table.to_dict("records"):
        cells = "".join(f"<td{kinds[c]}>{_cell(v)}</td>" for c, v in row.items())
        lines.append(f"<tr{' class=mark' if mark(row) else ''}>{cells}</tr>")
    return _scroll(head, lines)


def text_cell(text: str, *, name: bool = False) -> str:
    """A cell of text, which wraps where it is long.

    Args:
        text: The text.
        name: Whether it names its row: then it keeps some width beside many columns.
    """
    long = len(text) > 18
    kind = f"text{' wrap' * long}{' name' * (long and name)}"
    return f'<td class="{kind}">{escape(text)}</td>'


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are whole `<td>` elements already."""
    titles = "".join(f'<th class="text">{escape(h)}</th>' for h in head)
    return _scroll(titles, ["<tr>" + "".join(cells) + "</tr>" for cells in rows])


def settings(values: Mapping[str, Any]) -> str:
    """Names and values in two columns."""
    rows = [(text_cell(str(k)), text_cell(_shown(v))) for k, v in values.items()]
    return html_table(("setting", "value"), rows)


def code(text: str) -> str:
    """Commands or code, as they are typed."""
    return f"<pre><code>{escape(text)}</code></pre>"


def _scroll(head: str, lines: Iterable[str]) -> str:
    lines = list(lines)
    table = (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
    if len(lines) <= _MANY:
        return table
    return f"<details><summary>{len(lines)} rows</summary>{table}</details>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        if value != value:
            return "–"
        return f"{value:.2f}" if value == 0 or abs(value) >= 0.005 else f"{value:.1g}"
    return escape(str(value))


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
