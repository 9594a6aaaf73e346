"""Figures within a page: the title as text above, and colours that follow the reader's choice."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from vlm_lens.figures.style import CONFIG, plain_lines

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["COLOURS", "SCRIPT", "fading", "figure_html", "figure_page"]

# The colours of a page, light and dark.
COLOURS = """
:root { color-scheme: light dark; --ink: #1d2127; --soft: #5c6470; --line: #d9dde3;
  --page: #fcfcfb; --panel: #f3f4f2; --accent: #0072b2; --mark: rgba(0,114,178,.11) }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #a2a9b4; --line: #363c45;
  --page: #15181c; --panel: #1e2228; --accent: #56b4e9; --mark: rgba(86,180,233,.16) } }
"""
_PAGE = """body { margin: 16px; background: var(--page); color: var(--ink);
  font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
figure { margin: 0; overflow-x: auto }
figcaption { position: sticky; left: 0; color: var(--soft) }
figcaption b { display: block; color: var(--ink); font-size: 16px }
"""
_PANEL_PX = 320  # of one of several panels side by side, with the titles of its axes
_AXES_PX, _LETTER_PX = 220, 7  # beside names along the y axis, and a letter of these
_LINE_PX = 14  # of a slanted label below the x axis
# Figures take the page's own colours, also when the reader switches between light and dark.
# A legend below the axes gets as much room as its lines take at this width.
SCRIPT = """
const dark = matchMedia("(prefers-color-scheme: dark)");
const drawn = () => [...document.querySelectorAll(".plotly-graph-div")];
function ink() {
  const { color, backgroundColor } = getComputedStyle(document.body);
  const look = {"font.color": color, "modebar.activecolor": color, paper_bgcolor: backgroundColor};
  return Promise.all(drawn().map(d => Plotly.relayout(d, look)));
}
function fit(d) {
  const full = d._fullLayout, legend = d.querySelector("g.legend");
  if (!legend || full.legend.orientation !== "h" || full.legend.y > 1) return;
  const margin = full.margin, size = full._size;
  d.plotHeight ??= full.height - margin.t - margin.b;
  const edge = d.getBoundingClientRect().top + size.t + size.h;
  const texts = d.querySelectorAll('.xaxislayer-above text, [class^="g-x"][class$="title"] text');
  const below = Math.max(0, ...[...texts].map(t => t.getBoundingClientRect().bottom - edge));
  const bottom = Math.ceil(below + legend.getBoundingClientRect().height + 18);
  const height = margin.t + d.plotHeight + bottom;
  d.style.height = d.parentElement.style.height = height + "px";
  return Plotly.relayout(d, {height, "margin.b": bottom, "legend.yref": "container", "legend.y": 0,
    "legend.yanchor": "bottom", "legend.x": 0});
}
const settle = () => drawn().forEach(d => Plotly.Plots.resize(d).then(() => fit(d)));
let waiting;
addEventListener("load", () => ink().then(settle));
addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(settle, 200); });
dark.addEventListener("change", ink);
"""
_FADE = ".more { mask-image: linear-gradient(to right, #000 calc(100% - 36px), transparent) }"
_EDGES = """
const edge = box =>
  box.classList.toggle("more", box.scrollWidth - box.clientWidth - box.scrollLeft > 2);
const sized = new ResizeObserver(all => all.forEach(({target}) => edge(target.closest(BOXES))));
for (const box of document.querySelectorAll(BOXES)) {
  sized.observe(box);
  for (const inside of box.children) sized.observe(inside);
  box.addEventListener("scroll", () => edge(box));
}
"""


def fading(boxes: str) -> str:
    """What makes boxes fade out to the right where they go on, for the end of a page.

    Args:
        boxes: Which, as a selector of CSS; each scrolls sideways.
    """
    script = _EDGES.replace("BOXES", f"'{boxes}'")
    return f"<style>{_FADE}</style><script>{{{script}}}</script>"


def figure_html(
    fig: go.Figure, caption: str = "", *, modebar: bool = False, plotlyjs: str | None = None
) -> str:
    """A plotly figure as a part of a page; its title stands above as text.

    Args:
        fig: The figure.
        caption: What a reader of the figure must know, plain text.
        modebar: Whether plotly's own buttons show when the pointer is over the figure.
        plotlyjs: Where the library that draws it is, as of `write_figure`; by default the page
            holds it.
    """
    title, *more = plain_lines(fig.layout.title.text or "")
    fig = type(fig)(fig)  # the page changes it, its owner keeps it
    margin = fig.layout.margin
    if title and margin.t:
        spared = min(margin.t - 28, 64 if more else 40)
        fig.update_layout(title_text="", margin_t=margin.t - spared)
        if fig.layout.height:
            fig.update_layout(height=fig.layout.height - spared)
    fig.update_layout(paper_bgcolor="rgba(0,0,0,0)")
    config = CONFIG if modebar else {**CONFIG, "displayModeBar": False}
    drawn = fig.to_html(full_html=False, include_plotlyjs=plotlyjs or False, config=config)
    if least := _least_width(fig):
        drawn = f'<div style="min-width:{least}px">{drawn}</div>'
    lines = [f"<b>{escape(title)}</b>" if title else "", *map(escape, (*more, caption))]
    note = "<br>".join(line for line in lines if line).replace("</b><br>", "</b>")
    about = f' aria-label="{escape(title)}"' if title else ""
    return f"<figure{about}>{f'<figcaption>{note}</figcaption>' if note else ''}{drawn}</figure>"


def figure_page(fig: go.Figure, *, plotlyjs: str) -> str:
    """A whole page of one figure, light or dark as its reader's browser prefers.

    Args:
        fig: The figure; of the package's look.
        plotlyjs: As of `write_figure`.
    """
    title = plain_lines(fig.layout.title.text or "")[0] or "Figure"
    drawn = figure_html(fig, modebar=True, plotlyjs=plotlyjs)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{COLOURS}{_PAGE}</style></head><body>{drawn}"
        f"<script>{SCRIPT}</script>{fading('figure')}</body></html>"
    )


def _least_width(fig: go.Figure) -> int:
    """Pixels below which a figure is scrolled, not squeezed: its texts would lie on one another."""
    lefts = {round(axis.domain[0], 3) for axis in fig.select_xaxes() if axis.domain}
    if len(lefts) > 1:
        return _PANEL_PX * len(lefts)
    axes = [axis for axis in fig.select_xaxes() if axis.tickangle and axis.ticktext is not None]
    slanted = [len(axis.ticktext) for axis in axes]
    along = [trace.y for trace in fig.data if getattr(trace, "y", None) is not None]
    names = [y for ys in along for y in ys if isinstance(y, str)]
    widths = [_LETTER_PX * len(name) for name in names] + [_LINE_PX * count for count in slanted]
    return _AXES_PX + max(widths) if widths else 0
