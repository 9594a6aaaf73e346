"""Numbers over pictures and tokens, as one piece of HTML that needs nothing beside it.

The pictures as given stand on the left; on the right the same in grey, which shows through, with
each patch coloured by its number: one hue for what is positive, another for what is negative,
stronger where it is larger, set against the largest of all patches. The tokens follow, set against
the largest of all tokens. Pointing at a patch or a token shows its number and marks its twin;
further axes have sliders. Without scripts (a page on GitHub, say) the first setting is still drawn.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from vlm_lens.errors import VLMLensError
from vlm_lens.figures.prompt_view import canvas, cell_edges, picture_uri, visible
from vlm_lens.figures.view_parts import (
    MOST_OPAQUE,
    RULED,
    Cell,
    Token,
    drawings,
    strengths,
)
from vlm_lens.layout.geometry import PatchGrid
from vlm_lens.layout.kinds import PAD, runs
from vlm_lens.storage.files import write_whole

_MOST = 4_000_000  # numbers in one page
_SIDE = 300  # pixels of a picture on the page


@dataclass(frozen=True)
class PictureView:
    """Numbers over pictures and tokens; shows itself in Jupyter, and saves itself.

    Attributes:
        values: The numbers, `[slider, slider, ..., place]`.
        sliders: Axis -> what its settings are called.
        cells: The patches.
        tokens: The prompt's tokens.
        grids: (picture, grid) -> the grid.
        pictures: The pictures as given; fewer where they are not known.
        labels: What each place is called.
        marked: Places that are marked, attention sinks say.
        name: What the numbers are.
        subtitle: What is shown of them.
    """

    values: np.ndarray
    cells: tuple[Cell, ...]
    tokens: tuple[Token, ...]
    grids: Mapping[tuple[int, int], PatchGrid]
    pictures: tuple[Image.Image, ...]
    labels: tuple[str, ...]
    sliders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    marked: tuple[int, ...] = ()
    name: str = "score"
    subtitle: str = ""

    def __post_init__(self):
        if self.values.size > _MOST:
            raise VLMLensError(
                f"{self.values.size:,} numbers are too many for one page ({_MOST:,}): choose "
                "some with sel(), or sum over an axis first."
            )

    def save(self, path: str | Path, **setting: str | int) -> Path:
        """Writes the view as a page (`.html`) or, drawn by matplotlib, a picture.

        Args:
            path: Where; `.png`, `.svg` and `.pdf` are pictures of one setting of the sliders.
            **setting: Axis -> the setting drawn, for pictures; the first by default.

        Returns:
            The path.

        Raises:
            VLMLensError: Another ending, no such setting, or a file that cannot be written.
        """
        path = Path(path)
        if path.suffix == ".html":
            return write_whole(path, _page(self))
        from vlm_lens.figures.static_view import draw

        chosen = self.setting(**setting)
        said = [f"{a} {v[i]}" for (a, v), i in zip(self.sliders.items(), chosen, strict=True)]
        title = ", ".join([self.name, *filter(None, (self.subtitle,)), *said])
        return draw(
            path, self.values[chosen], self.cells, self.tokens, self.grids, self.pictures, title
        )

    def setting(self, **setting: str | int) -> tuple[int, ...]:
        """The index along each slider of a setting, the first where nothing is said.

        Raises:
            VLMLensError: No such slider or setting.
        """
        unknown = [axis for axis in setting if axis not in self.sliders]
        if unknown:
            raise VLMLensError(
                f"This view has no slider {unknown[0]!r}; it has {list(self.sliders)}."
            )
        found = []
        for axis, labels in self.sliders.items():
            wanted = str(setting.get(axis, labels[0]))
            if wanted not in labels:
                raise VLMLensError(
                    f"{axis} {wanted} is not in this view; there are {', '.join(labels[:12])}."
                )
            found.append(list(labels).index(wanted))
        return tuple(found)

    def _repr_html_(self) -> str:
        return view_html(self)

    def __repr__(self) -> str:
        sliders = ", ".join(f"{a} ({len(v)})" for a, v in self.sliders.items())
        return (
            f"PictureView({self.name}: {len(self.cells)} patches, {len(self.tokens)} tokens"
            + (f"; sliders {sliders}" if sliders else "")
            + "; .save('view.html') or .save('view.png'))"
        )


def view_html(view: PictureView) -> str:
    """The view as a piece of HTML."""
    name = f"vlml{uuid.uuid4().hex[:10]}"
    first = view.values.reshape(-1, view.values.shape[-1])[0]
    signed = bool(np.nanmin(view.values) < 0)
    opening = strengths(first, view.cells)
    drawn = "".join(_picture(view, key, opening) for key in drawings(view.grids))
    controls = "".join(
        f'<label>{escape(axis)} <input type="range" min="0" max="{len(labels) - 1}" value="0" '
        f'data-slider="{i}"> <output>{escape(labels[0])}</output></label>'
        for i, (axis, labels) in enumerate(view.sliders.items())
    )
    style = _source("picture_view.css").replace("VIEW", f"#{name}")
    data = {
        "shape": list(view.values.shape),
        "values": base64.b64encode(view.values.astype("<f4").tobytes()).decode(),
        "sliders": [list(labels) for labels in view.sliders.values()],
        "labels": list(view.labels),
        "name": view.name,
    }
    script = Template(_source("picture_view.js")).substitute(
        name=json.dumps(name), opaque=MOST_OPAQUE, data=json.dumps(data).replace("<", "\\u003c")
    )
    title = escape(view.name) + (f", {escape(view.subtitle)}" if view.subtitle else "")
    return (
        f'<div id="{name}" class="vlml-view"><style>{style}</style>'
        f'<div class="head"><b>{title}</b>'
        + "".join(_scale(group, signed) for group in _groups(view))
        + "</div>"
        + (f'<div class="controls">{controls}</div>' if controls else "")
        + '<div class="told" aria-live="polite">point at a patch or a token</div>'
        + (f'<div class="pictures">{drawn}</div>' if drawn else "")
        + (f'<div class="tokens">{"".join(_chips(view, opening))}</div>' if view.tokens else "")
        + f"<script>{script}</script></div>"
    )


def _page(view: PictureView) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(view.name)}</title><style>:root{{color-scheme:light dark}}"
        "body{margin:1rem;font:14px/1.45 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}"
        f"</style></head><body>{view_html(view)}</body></html>"
    )


def _source(name: str) -> str:
    return (files("vlm_lens.figures") / name).read_text(encoding="utf-8")


def _groups(view: PictureView) -> list[str]:
    """What has a scale of its own."""
    patches = {c.index for c in view.cells}
    tokens = any(t.index is not None and t.index not in patches for t in view.tokens)
    return ["patches"] * bool(patches) + ["tokens"] * tokens


def _scale(group: str, signed: bool) -> str:
    return (
        f'<span class="scale {group}">{group} <span class="least">{"" if signed else "0"}</span> '
        f'<i class="{"both" if signed else "one"}"></i> <span class="most"></span></span>'
    )


def _picture(view: PictureView, key: tuple[int, tuple[int, ...]], opening: np.ndarray) -> str:
    image, numbers = key
    grids = {n: view.grids[image, n] for n in numbers}
    picture = view.pictures[image] if image < len(view.pictures) else None
    size = picture.size if picture is not None else next(iter(grids.values())).pixels_of.picture
    x0, y0, x1, y1 = canvas(grids.values(), size)
    zoom = min(_SIDE / (x1 - x0), _SIDE / (y1 - y0))
    box = f"{x0:.2f} {y0:.2f} {x1 - x0:.2f} {y1 - y0:.2f}"
    width, height = (x1 - x0) * zoom, (y1 - y0) * zoom
    shown = ""
    if picture is not None:
        shown = (
            f'<image href="{picture_uri(picture)}" x="0" y="0" width="{size[0]}" '
            f'height="{size[1]}" preserveAspectRatio="none"'
        )
    svg = (
        f'<svg viewBox="{box}" width="{width:.0f}" height="{height:.0f}" role="img" '
        'aria-label="{label}">{inside}</svg>'
    )
    plain = svg.format(label=f"image {image} as given", inside=f"{shown}/>") if shown else ""
    rects = "".join(
        _rect(grids[c.grid], c, opening[c.index], c.index in view.marked)
        for c in view.cells
        if c.image == image and c.grid in grids
    )
    ruled = sum(g.rows * g.cols for g in grids.values()) <= RULED
    rects = f'<g class="cells{" ruled" if ruled else ""}" stroke-width="{1 / zoom:.3f}">{rects}</g>'
    grey = f'{shown} class="grey"/>' if shown else ""
    heat = svg.format(label=f"{escape(view.name)} over image {image}", inside=grey + rects)
    tiles = "" if numbers[0] == 0 and len(view.grids) == 1 else _which(view, image, numbers)
    return f"<figure>{plain}{heat}<figcaption>image {image}{tiles}</figcaption></figure>"


def _which(view: PictureView, image: int, numbers: tuple[int, ...]) -> str:
    count = sum(1 for i, _ in view.grids if i == image)
    if count == 1:
        return ""
    return ": the whole picture" if 0 in numbers else ": its tiles"


def _rect(grid: PatchGrid, cell: Cell, strength: float, marked: bool) -> str:
    xs, ys = cell_edges(grid)
    row, col = cell.at
    sign = "minus" if strength < 0 else "plus"
    classes = f"cell {sign}" + (" marked" if marked else "")
    return (
        f'<rect class="{classes}" data-i="{cell.index}" x="{xs[col]:.2f}" y="{ys[row]:.2f}" '
        f'width="{xs[col + 1] - xs[col]:.2f}" height="{ys[row + 1] - ys[row]:.2f}" '
        f'fill-opacity="{MOST_OPAQUE * abs(strength):.3f}"/>'
    )


def _chips(view: PictureView, opening: np.ndarray) -> Iterator[str]:
    kinds = [token.kind for token in view.tokens]
    for kind, start, stop in runs(kinds):
        if kind.medium or kind == PAD:
            inside = [t.index for t in view.tokens[start:stop] if t.index is not None]
            about = json.dumps(inside)
            span = f"{start}..{stop - 1}" if stop - start > 1 else str(start)
            label = kind if kind != PAD else "padding"
            yield (
                f'<span class="chip run" data-all="{about}"><small>{span}</small>'
                f"{escape(label)} <output></output></span>"
            )
            continue
        for token in view.tokens[start:stop]:
            known = token.index is not None
            strength = opening[token.index] if known else 0.0
            sign = "minus" if strength < 0 else "plus"
            marked = " marked" if token.index in view.marked else ""
            about = f' data-i="{token.index}"' if known else ""
            yield (
                f'<span class="chip {sign}{marked}"{about} '
                f'style="--s:{MOST_OPAQUE * abs(strength):.3f}"><small>{token.position}</small>'
                f"{escape(visible(token.string, 40))}</span>"
            )
