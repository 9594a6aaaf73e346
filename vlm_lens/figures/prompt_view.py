"""A prompt as a notebook shows it: pictures under their patch grids, tokens by position.

Plain HTML with inline SVG: no script, no network, no plotly.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from itertools import product
from typing import Any

from PIL import Image

from vlm_lens.figures.style import PALETTE, fade
from vlm_lens.layout.geometry import Box, PatchGrid
from vlm_lens.layout.kinds import PAD, SPECIAL, Kind, runs
from vlm_lens.layout.layout import Layout
from vlm_lens.layout.pictures import ImageLayout
from vlm_lens.pictures import as_read

MAX_ROWS = 3
MAX_TOKENS = 400
_MAX_SIDE = 640  # pixels of an embedded picture; shown at half of it, for dense screens
_MONO = "ui-monospace,SFMono-Regular,Menlo,Consolas,monospace"
# Every colour is laid over the notebook's own, so that light and dark both stay readable.
_LINE = "rgba(128,128,128,.5)"
_HUES = [PALETTE[c] for c in ("blue", "orange", "green", "purple", "vermillion", "sky")]
_STYLE = (
    "<style>"
    ".vlml-p text{display:none;pointer-events:none}"
    ".vlml-p:hover rect{fill:rgba(255,213,0,.5);stroke:#000}"
    ".vlml-p:hover text{display:block}"
    "</style>"
)


def prompt_html(prompt: Any) -> str:
    """What a Prompt shows in Jupyter.

    Each picture stands under its patch grid, the part that the processor cuts away dimmed; hovering
    a patch names its position in the language model and its row and column. The tokens follow with
    their positions, runs of one picture's patches and of padding as one box.

    Args:
        prompt: A Prompt; also one made from tensors, without texts or pictures.

    Returns:
        HTML that needs nothing beside it. Never raises, as a repr must not.
    """
    try:
        return _prompt_html(prompt)
    except Exception:
        return f"<pre>{escape(_plain(prompt))}</pre>"


def cell_edges(grid: PatchGrid) -> tuple[list[float], list[float]]:
    """Where a grid's lines lie, in pixels of the picture as given: x of columns, y of rows.

    Unlike `grid.pixels`, the lines go on past the border of a picture that the processor has
    padded, for there are patches too.
    """
    (sx, sy), (ox, oy) = grid.pixels_of.scale, grid.pixels_of.offset
    rows, cols = grid.spans
    xs = [(x - ox) / sx for x in (*(start for start, _ in cols), cols[-1][1])]
    ys = [(y - oy) / sy for y in (*(start for start, _ in rows), rows[-1][1])]
    return xs, ys


def canvas(grids: Iterable[PatchGrid], size: tuple[int, int]) -> Box:
    """The box that holds the picture and its whole grids, in pixels of the picture as given."""
    x0, y0, x1, y1 = 0.0, 0.0, float(size[0]), float(size[1])
    for grid in grids:
        xs, ys = cell_edges(grid)
        x0, y0, x1, y1 = min(x0, xs[0]), min(y0, ys[0]), max(x1, xs[-1]), max(y1, ys[-1])
    return x0, y0, x1, y1


def picture_uri(picture: Image.Image, *, most: int = _MAX_SIDE) -> str:
    """A picture as a PNG data URI: the pixels as the model is given them, made smaller if large."""
    shown = as_read(picture)
    if max(shown.size) > most:
        scale = most / max(shown.size)
        shown = shown.resize(tuple(max(1, round(s * scale)) for s in shown.size))  # type: ignore[arg-type]
    data = io.BytesIO()
    shown.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def visible(token: str, most: int | None = None) -> str:
    r"""A token as one short word: `\n` for a line break, no space around it, cut to `most`."""
    text = repr(token)[1:-1].replace("\\'", "'") if token.strip() != token else token
    text = text.replace("\n", "\\n").replace("\t", "\\t").strip() or repr(token)
    return text if most is None or len(text) <= most else f"{text[: max(most - 1, 1)]}\u2026"


def _plain(prompt: Any) -> str:
    try:
        return repr(prompt)
    except Exception:
        return object.__repr__(prompt)


def _prompt_html(prompt: Any) -> str:
    layouts, count = prompt.layouts[:MAX_ROWS], len(prompt.layouts)
    pictures = prompt.images or ()
    parts = [_STYLE]
    if count > 1:
        length = len(layouts[0])
        parts.append(f"<div><b>{count} rows</b> of {length} positions, padded on the left</div>")
    for row, layout in enumerate(layouts):
        mine = pictures[row] if row < len(pictures) else ()
        title = f"<div style='margin-top:.8em'><b>row {row}</b></div>" if count > 1 else ""
        parts += [title, _pictures(layout, mine, small=count > 1), _tokens(layout)]
    if count > MAX_ROWS:
        more = count - MAX_ROWS
        parts.append(
            f"<div style='margin-top:.8em'>... and {more} more row{'s' * (more > 1)}</div>"
        )
    return f"<div style='font-size:13px;line-height:1.4'>{''.join(parts)}</div>"


# ---------------------------------------------------------------------------------- pictures


def _pictures(layout: Layout, pictures: Sequence[Image.Image], *, small: bool) -> str:
    small = small or len(layout.images) > 1
    figures = []
    for i, image in enumerate(layout.images):
        picture = pictures[i] if i < len(pictures) else None
        grids = image.text.grids
        # a view of the whole picture and the tiles cover the same pixels: one drawing each
        for chosen in (grids[:1], grids[1:]) if len(grids) > 1 else (grids,):
            figures.append(_picture(image, picture, chosen, small))
    if not figures:
        return ""
    flow = "display:flex;flex-wrap:wrap;gap:14px;align-items:flex-end;margin:.5em 0"
    return f"<div style='{flow}'>{''.join(figures)}</div>"


def _picture(
    image: ImageLayout, picture: Image.Image | None, grids: Sequence[PatchGrid], small: bool
) -> str:
    size = picture.size if picture is not None else _size(grids)
    box = x0, y0, x1, y1 = canvas(grids, size)
    zoom = _zoom(box, grids, small)
    width, height = (x1 - x0) * zoom, (y1 - y0) * zoom
    layers = []
    if picture is not None:
        place = (
            f"position:absolute;left:{-x0 * zoom:.1f}px;top:{-y0 * zoom:.1f}px;margin:0;"
            "max-width:none"
        )
        layers.append(
            f'<img src="{picture_uri(picture)}" alt="image {image.index}" '
            f'width="{size[0] * zoom:.0f}" height="{size[1] * zoom:.0f}" style="{place}">'
        )
    if grids:
        layers.append(_overlay(grids, size, box, zoom))
    ground = (
        f"position:relative;width:{width:.1f}px;height:{height:.1f}px;overflow:hidden;"
        "background:rgba(128,128,128,.35)"
    )
    return (
        f"<div style='border-bottom:3px solid {_hue(image.index)};padding-bottom:3px'>"
        f"<div style='{ground}'>{''.join(layers)}</div>{_caption(image, picture, grids)}</div>"
    )


def _size(grids: Sequence[PatchGrid]) -> tuple[int, int]:
    return grids[0].pixels_of.picture if grids else (224, 224)


def _zoom(box: Box, grids: Sequence[PatchGrid], small: bool) -> float:
    """Screen pixels for one pixel of the picture: more where patches are many and small."""
    fine = sum(g.rows * g.cols for g in grids) > 200
    width, height = {0: (240, 160), 1: (440, 240), 2: (560, 400)}[(not small) + fine]
    return min(width / (box[2] - box[0]), height / (box[3] - box[1]))


def _caption(image: ImageLayout, picture: Image.Image | None, grids: Sequence[PatchGrid]) -> str:
    title = f"<b>image {image.index}</b> at {_span(image.positions)}"
    if not grids:
        reason = image.text.why_no_grid or "no position holds a single patch"
        return _lines(title, escape(reason))
    if len(image.text.grids) == 1:
        title += f", {_grid_size(grids[0])}"
    elif grids[0] is image.text.grids[0]:
        title += f": the whole picture, {_grid_size(grids[0])}"
    else:
        title += f": {len(grids)} tile{'s' * (len(grids) > 1)} of {_grid_size(grids[0])}"
    w, h = _size(grids)
    if picture is None:
        return _lines(title, f"picture not known; {w} x {h} pixels enter the model")
    seen = [round(v) for v in _seen(grids)]
    cut = f"; the model sees the box {tuple(seen)}" if seen != [0, 0, w, h] else ""
    return _lines(title, f"{w} x {h} pixels{cut}")


def _grid_size(grid: PatchGrid) -> str:
    return f"{grid.rows} x {grid.cols} patches"


def _seen(grids: Sequence[PatchGrid]) -> Box:
    boxes = [grid.pixels_of.seen for grid in grids]
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def _lines(*lines: str) -> str:
    return "".join(f"<div style='font-size:12px;max-width:440px'>{line}</div>" for line in lines)


def _overlay(grids: Sequence[PatchGrid], size: tuple[int, int], box: Box, zoom: float) -> str:
    """The grids as SVG, in pixels of the picture as given."""
    x0, y0, x1, y1 = box
    line = 1 / zoom
    shapes = []
    (sx0, sy0, sx1, sy1), (w, h) = _seen(grids), size
    if (sx0, sy0, sx1, sy1) != (0, 0, w, h):
        shapes.append(
            f'<path fill-rule="evenodd" fill="rgba(110,110,110,.78)" '
            f'd="M0 0H{w}V{h}H0Z M{_n(sx0)} {_n(sy0)}H{_n(sx1)}V{_n(sy1)}H{_n(sx0)}Z"/>'
        )
    lines = ""
    for grid in grids:
        xs, ys = cell_edges(grid)
        lines += "".join(f"M{_n(x)} {_n(ys[0])}V{_n(ys[-1])}" for x in xs)
        lines += "".join(f"M{_n(xs[0])} {_n(y)}H{_n(xs[-1])}" for y in ys)
    for colour, width in (("rgba(0,0,0,.25)", 2.5), ("rgba(255,255,255,.8)", 1)):  # on any ground
        shapes.append(
            f'<path d="{lines}" fill="none" stroke="{colour}" stroke-width="{_n(width * line)}"/>'
        )
    shapes += [_patch(grid, r, c, box, zoom) for grid in grids
               for r, c in product(range(grid.rows), range(grid.cols))]  # fmt: skip
    return (
        f'<svg viewBox="{_n(x0)} {_n(y0)} {_n(x1 - x0)} {_n(y1 - y0)}" '
        f'width="{(x1 - x0) * zoom:.1f}" height="{(y1 - y0) * zoom:.1f}" '
        f'style="position:absolute;left:0;top:0">{"".join(shapes)}</svg>'
    )


def _patch(grid: PatchGrid, row: int, col: int, box: Box, zoom: float) -> str:
    """One patch: nothing to see until it is hovered."""
    xs, ys = cell_edges(grid)
    font, line, position = 13 / zoom, 1 / zoom, grid.patch(row, col)
    left, top, right, bottom = xs[col], ys[row], xs[col + 1], ys[row + 1]
    middle = (left + right) / 2
    share = (middle - box[0]) / (box[2] - box[0])
    anchor = "start" if share < 0.3 else "end" if share > 0.7 else "middle"
    at_x = {"start": left, "middle": middle, "end": right}[anchor]
    at_y = min(max((top + bottom) / 2, box[1] + font), box[3] - font)
    pixels = ", ".join(f"{v:.0f}" for v in (left, top, right, bottom))
    return (
        f'<g class="vlml-p"><title>position {position}, patch ({row}, {col}), '
        f"pixels ({pixels})</title>"
        f'<rect x="{_n(left)}" y="{_n(top)}" width="{_n(right - left)}" '
        f'height="{_n(bottom - top)}" fill="transparent" stroke-width="{_n(line)}"/>'
        f'<text x="{_n(at_x)}" y="{_n(at_y)}" text-anchor="{anchor}" font-size="{_n(font)}" '
        'dominant-baseline="central" font-weight="bold" fill="#fff" stroke="#000" '
        f'stroke-width="{_n(3 * line)}" paint-order="stroke" display="none">'
        f"{position} ({row}, {col})</text></g>"
    )


# ------------------------------------------------------------------------------------ tokens


def _tokens(layout: Layout) -> str:
    boxes: list[tuple[Kind, int, int]] = []  # kind, first position, one past the last
    for kind, start, stop in runs(layout.kinds):
        whole = kind == PAD or kind.medium
        boxes += [(kind, start, stop)] if whole else [(kind, i, i + 1) for i in range(start, stop)]
    left_out = len(boxes) - MAX_TOKENS
    if left_out > 0:  # a prompt's end says what it asks
        boxes[MAX_TOKENS // 2 : -MAX_TOKENS // 2] = []
    chips = [_box(layout, *box) for box in boxes]
    if left_out > 0:
        chips.insert(MAX_TOKENS // 2, f"<span>... {left_out} more ...</span>")
    flow = "display:flex;flex-wrap:wrap;gap:3px;align-items:stretch;margin:.4em 0"
    return f"<div style='{flow}'>{' '.join(chips)}</div>"


def _box(layout: Layout, kind: Kind, start: int, stop: int) -> str:
    span = _span(range(start, stop))
    if kind == PAD:
        return _chip(span, "padding", "opacity:.6;border-style:dotted")
    if kind.number is not None:
        hue = _hue(kind.number)
        style = f"background:{fade(hue, 0.22)};border-color:{hue}"
        return _chip(span, _run_title(layout, kind, stop - start), style)
    return _token(layout, start)


def _run_title(layout: Layout, kind: Kind, length: int) -> str:
    grid = next((im.grid for im in layout.images if f"image {im.index}" == kind), None)
    if grid and length == len(grid.positions):
        return f"{kind}, {_grid_size(grid)}"
    return f"{kind}, {length} position{'s' * (length != 1)}"


def _token(layout: Layout, position: int) -> str:
    string = layout.strings[position] if layout.strings else None
    text = f"#{layout.token_ids[position]}" if string is None else visible(string, 40)
    kind = layout.kinds[position]
    style = "font-style:italic;border-style:dashed" if kind == SPECIAL else ""
    about = f"position {position}, token id {layout.token_ids[position]}"
    about += "" if string is None else f", {string!r}"
    return _chip(str(position), text, style, about + (", special" if kind == SPECIAL else ""))


def _chip(position: str, text: str, style: str = "", title: str = "") -> str:
    about = f' title="{escape(title)}"' if title else ""
    return (
        f"<span{about} style='display:inline-block;border:1px solid {_LINE};border-radius:4px;"
        f"padding:0 5px 2px;text-align:center;{style}'>"
        "<span style='display:block;font-size:10px;opacity:.75;font-style:normal'>"
        f"{position}</span>"
        f" <span style='font-family:{_MONO};white-space:pre'>{escape(text)}</span></span>"
    )


def _span(positions: Sequence[int]) -> str:
    first, last = positions[0], positions[-1]
    return str(first) if first == last else f"{first}..{last}"


def _hue(index: int) -> str:
    return _HUES[index % len(_HUES)]


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
