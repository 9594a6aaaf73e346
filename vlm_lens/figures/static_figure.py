"""The package's plotly figures as pictures: PNG, SVG or PDF by matplotlib, without a browser.

What is drawn is what a figure shows at first: of a slider's settings the one at which it stands.
"""

from __future__ import annotations

import base64
import io
import logging
import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lens.errors import VLMLensError
from vlm_lens.figures.static_axes import POINTS, Plane, plain, rgba, size_of
from vlm_lens.figures.static_traces import DRAWN, colour_of, dash_of, draw_traces, marker_of
from vlm_lens.figures.style import INK, PALETTE, plain_lines

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.figure import Figure

PICTURES = (".png", ".svg", ".pdf")
_LETTER = 6.7  # pixels, of a legend's text


def draw_figure(
    fig: go.Figure, to: str | Path | io.BytesIO, *, kind: str = "", dpi: int = 150
) -> None:
    """Draws a figure as a picture.

    Args:
        fig: A figure of the package: heat maps, bars, lines and markers on x and y axes.
        to: A file, whose ending says what kind, or a buffer for PNG.
        kind: `"png"`, `"svg"` or `"pdf"`, where the ending does not say it.
        dpi: Dots to the inch of PNG; a figure has 100 of its pixels to the inch.

    Raises:
        VLMLensError: Another ending, a kind of trace that only plotly draws, or no matplotlib.
    """
    kind = kind or ("png" if isinstance(to, io.BytesIO) else Path(to).suffix[1:])
    if f".{kind}" not in PICTURES:
        raise VLMLensError(
            f"{Path(str(to)).name}: a figure is written as .html, {', '.join(PICTURES)}."
        )
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise VLMLensError(
            "Pictures are drawn by matplotlib: pip install 'vlm-lens[static]', or save as .html."
        ) from None
    traces = [t for t in fig.data if t.visible is not False and t.visible != "legendonly"]
    for other in (t.type for t in traces if t.type not in DRAWN):
        raise VLMLensError(f"{other!r} traces are drawn by plotly only: save the figure as .html.")
    # data is text, never a formula; a sign that a font lacks is drawn as a box
    plainly = {"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "vlm_lens"}
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with matplotlib.rc_context(plainly), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        width, height = size_of(fig)
        canvas = Figure(figsize=(width / 100, height / 100), dpi=100)
        if traces:
            plane = Plane(fig, canvas, traces)
            scales = draw_traces(fig, plane, traces)
            _images(fig, plane)
            _rule(plane)
            _shapes(fig, plane)
            _annotations(fig, plane)
            for bar, drawn in scales:
                _colour_bar(canvas, plane, bar, drawn)
            _title(fig, canvas, plane)
            _legend(fig, canvas, plane, traces)
        ground = rgba(fig.layout.paper_bgcolor or "#ffffff")
        ground = ground if ground[3] else "white"
        metadata = {"Software": None} if kind == "png" else {"Date": None} if kind == "svg" else {}
        canvas.savefig(to, format=kind, dpi=dpi, bbox_inches="tight", pad_inches=0.12,
                       facecolor=ground, metadata=metadata)  # fmt: skip


def _rule(plane: Plane) -> None:
    for (x, y), axes in plane.pairs.items():
        for which, name in (("x", x), ("y", y)):
            if plane.axis[name].log:
                getattr(axes, f"set_{which}scale")("log")
        for which, name in (("x", x), ("y", y)):
            plane.axis[name].rule(axes, which)
        if plane.axis[y].spec.scaleanchor or plane.axis[x].spec.scaleanchor:
            axes.set_aspect("equal", adjustable="box", anchor="NW")
        if plane.axis[x].spec.showline is False or plane.axis[y].spec.showticklabels is False:
            axes.spines[:].set_visible(False)


def _images(fig: go.Figure, plane: Plane) -> None:
    import numpy as np
    from PIL import Image

    for image in fig.layout.images:
        data = str(image.source).partition("base64,")[2]
        if not data:
            continue
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))
        axes = plane.of(image.xref, image.yref)
        down = plane.axis[image.yref].reversed if image.yref in plane.axis else False
        x, y, wide, high = float(image.x), float(image.y), float(image.sizex), float(image.sizey)
        left = x - {"left": 0, "center": wide / 2, "right": wide}[image.xanchor or "left"]
        above = {"top": 0, "middle": high / 2, "bottom": high}[image.yanchor or "top"]
        top = y - above if down else y + above
        foot = top + high if down else top - high
        if image.sizing == "contain":
            left, right, foot, top = _contained(plane, axes, image, shown, left, wide, foot, top)
        else:
            right = left + wide
        limits = axes.get_xlim(), axes.get_ylim()
        axes.imshow(shown, extent=(left, right, foot, top), aspect="auto", zorder=0)
        axes.set_xlim(limits[0])
        axes.set_ylim(limits[1])


def _contained(
    plane: Plane, axes: Any, image: Any, shown: Any, left: float, wide: float, foot: float,
    top: float,
) -> tuple[float, float, float, float]:  # fmt: skip
    """The box of a picture that keeps its shape within the box that it is given."""
    box = axes.get_position()
    spans = [abs(r[1] - r[0]) if (r := plane.axis[n].spec.range) else 1.0
             for n in (image.xref, image.yref)]  # fmt: skip
    unit_x = box.width * plane.width / spans[0]
    unit_y = box.height * plane.height / spans[1]
    ratio = shown.shape[1] / shown.shape[0]  # of width to height, in pixels
    high = abs(top - foot)
    if wide * unit_x > high * unit_y * ratio:
        return left, left + high * unit_y * ratio / unit_x, foot, top
    less = (high - wide * unit_x / ratio / unit_y) / 2 * (1 if top > foot else -1)
    return left, left + wide, foot + less, top - less


def _shapes(fig: go.Figure, plane: Plane) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    for shape in fig.layout.shapes:
        refs = shape.xref or "x", shape.yref or "y"
        axes, transform = plane.of(*refs), plane.transform(*refs)
        x0, x1 = (plane.value(refs[0], v) for v in (shape.x0, shape.x1))
        y0, y1 = (plane.value(refs[1], v) for v in (shape.y0, shape.y1))
        below = shape.layer == "below"
        line = shape.line
        look = {"transform": transform, "zorder": 0.5 if below else 2.2, "clip_on": False,
                "linewidth": (2 if line.width is None else line.width) * POINTS,
                "alpha": shape.opacity}  # fmt: skip
        if shape.type == "line":
            axes.add_line(Line2D([x0, x1], [y0, y1], color=rgba(line.color or INK),
                                 linestyle=dash_of(line), **look))  # fmt: skip
        elif shape.type == "rect":
            axes.add_patch(Rectangle(
                (min(x0, x1), min(y0, y1)), abs(x1 - x0), abs(y1 - y0),
                facecolor=rgba(shape.fillcolor), linestyle=dash_of(line),
                edgecolor=rgba(line.color) if line.width != 0 else "none", **look,
            ))  # fmt: skip


def _annotations(fig: go.Figure, plane: Plane) -> None:
    from matplotlib.transforms import ScaledTranslation

    for note in fig.layout.annotations:
        if not note.text:
            continue
        refs = note.xref or "x", note.yref or "y"
        shift = ScaledTranslation((note.xshift or 0) / 100, (note.yshift or 0) / 100,
                                  plane.canvas.dpi_scale_trans)  # fmt: skip
        x, y = (plane.value(r, v) for r, v in zip(refs, (note.x, note.y), strict=True))
        across = note.xanchor or "auto"
        up = note.yanchor or "auto"
        if across == "auto":
            across = "center"
        if up == "auto":
            up = "middle"
        plane.of(*refs).text(
            x, y, plain(note.text), transform=plane.transform(*refs) + shift,
            ha=across, va={"middle": "center"}.get(up, up), rotation=-(note.textangle or 0),
            fontsize=(note.font.size or fig.layout.font.size or 12) * POINTS,
            color=rgba(note.font.color or INK), zorder=5,
            weight="bold" if note.text.lstrip().startswith("<b>") else "normal",
        )  # fmt: skip


def _colour_bar(canvas: Figure, plane: Plane, bar: Any, drawn: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    at = 1.02 if bar.x is None else bar.x
    share = 1.0 if bar.len is None else min(bar.len, 1.0)
    box = (plane.left + at * plane.across, plane.bottom + plane.up * (1 - share) / 2,
           (bar.thickness or 14) / plane.width, plane.up * share)  # fmt: skip
    shown = canvas.colorbar(drawn, cax=canvas.add_axes(box))
    shown.outline.set_visible(False)
    shown.ax.tick_params(labelsize=11 * POINTS, length=0, labelcolor=INK)
    if bar.tickformat:
        form = bar.tickformat
        shown.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: format(v, form)))
    if bar.title.text:
        shown.set_label(plain(bar.title.text), fontsize=12 * POINTS, color=INK)


def _title(fig: go.Figure, canvas: Figure, plane: Plane) -> None:
    lines = plain_lines(fig.layout.title.text or "")
    for slider in fig.layout.sliders:
        step = slider.steps[slider.active or 0]
        lines.append(f"{slider.currentvalue.prefix or ''}{plain(step.label)}")
    canvas.draw_without_rendering()
    tops = [a.get_tightbbox().y1 for a in canvas.axes if a.get_visible()]
    y = canvas.transFigure.inverted().transform((0, max(tops)))[1] + 12 / plane.height
    for i, line in reversed(list(enumerate(lines))):
        size = 16 if i == 0 and fig.layout.title.text else 12
        wrapped = textwrap.wrap(line, int(plane.width / (size * 0.52))) or [""]
        canvas.text(
            plane.left, y, "\n".join(wrapped), fontsize=size * POINTS, color=INK, va="bottom",
            weight="bold" if size == 16 else "normal",
        )  # fmt: skip
        y += len(wrapped) * size * 1.35 / plane.height


def _legend(fig: go.Figure, canvas: Figure, plane: Plane, traces: list[Any]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    way = fig.layout.colorway or list(PALETTE.values())
    named = [(i, t) for i, t in enumerate(traces) if t.name and _has_entry(t)]
    wanted = fig.layout.showlegend
    alone = len(named) < 2 and not any(t.showlegend for _, t in named)
    if not named or wanted is False or (wanted is None and alone):
        return
    handles = []
    for i, trace in named:
        own = rgba(colour_of(trace, way[i % len(way)]))
        label = plain(trace.name)
        if trace.type == "bar":
            handles.append(Patch(facecolor=own, label=label))
            continue
        mode = trace.mode or "lines+markers"
        handles.append(Line2D(
            [], [], color=own, label=label,
            linestyle=dash_of(trace.line) if "lines" in mode else "none",
            linewidth=(trace.line.width or 2) * POINTS,
            marker=marker_of(trace.marker.symbol) if "markers" in mode else "none", markersize=6,
        ))  # fmt: skip
    longest = max(len(h.get_label()) for h in handles)
    columns = max(1, min(len(handles), int(plane.width * plane.across / (longest * _LETTER + 46))))
    canvas.draw_without_rendering()
    foot = min(a.get_tightbbox().y0 for a in canvas.axes if a.get_visible())
    y = canvas.transFigure.inverted().transform((0, foot))[1] - 6 / plane.height
    canvas.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(plane.left, y), ncols=columns,
        frameon=False, fontsize=12 * POINTS, labelcolor=INK, borderaxespad=0, borderpad=0.2,
    )  # fmt: skip


def _has_entry(trace: Any) -> bool:
    """Whether a legend names it: heat maps only where they ask for it."""
    return trace.showlegend or (trace.showlegend is None and trace.type != "heatmap")
