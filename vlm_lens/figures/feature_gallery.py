"""Pictures by feature, as one piece of HTML that needs nothing beside it.

A row a feature: the pictures in which it is strongest, each patch shaded by how strong it is there,
the strongest one outlined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from vlm_lens.figures.prompt_view import picture_uri
from vlm_lens.storage.files import write_whole

Box = tuple[float, float, float, float]
_SIDE = 116  # pixels of a picture on the page
_STYLE = f"""
.vl-fg {{ font: 14px/1.4 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  --soft: color-mix(in srgb, currentColor 75%, transparent) }}
.vl-fg section {{ margin: 18px 0 }} .vl-fg h3 {{ font-size: 15px; margin: 0 }}
.vl-fg p {{ margin: 1px 0 7px; color: var(--soft); font-size: 13px }}
.vl-fg .row {{ display: flex; flex-wrap: wrap; gap: 12px }}
.vl-fg figure {{ margin: 0; width: {_SIDE}px }}
.vl-fg .shown {{ position: relative; line-height: 0 }}
.vl-fg .shown img {{ width: {_SIDE}px; border-radius: 3px }}
.vl-fg .cell {{ position: absolute; background: #0072b2; pointer-events: none }}
.vl-fg .best {{ position: absolute; outline: 2px solid #fff; box-shadow: 0 0 0 4px #b5179e;
  pointer-events: none }}
.vl-fg figcaption {{ font-size: 12px; color: var(--soft); margin-top: 5px;
  overflow-wrap: break-word }}
.vl-fg figcaption b {{ font-weight: 600 }}
"""


@dataclass(frozen=True)
class Tile:
    """A picture in which a feature is strong.

    Attributes:
        picture: The picture as given.
        value: How strong the feature is at the strongest place.
        cells: Boxes of patches in pixels, with how strong the feature is there, between 0 and 1.
        best: The box of the strongest patch; `None` where places are no patches.
        caption: What the picture is called.
    """

    picture: Image.Image
    value: float
    cells: tuple[tuple[Box, float], ...] = ()
    best: Box | None = None
    caption: str = ""


@dataclass(frozen=True)
class FeatureRow:
    """A feature and its pictures.

    Attributes:
        title: What the feature is called.
        note: A line about it.
        tiles: The pictures, the strongest first.
    """

    title: str
    note: str
    tiles: tuple[Tile, ...]


def gallery_html(rows: Sequence[FeatureRow]) -> str:
    """The rows as a piece of HTML."""
    return f'<div class="vl-fg"><style>{_STYLE}</style>{"".join(map(_row, rows))}</div>'


def save_gallery(rows: Sequence[FeatureRow], path: str | Path, title: str) -> Path:
    """Writes the rows as a page.

    Returns:
        Its path.

    Raises:
        FileError: It cannot be written.
    """
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>:root {{ color-scheme: light dark }} "
        "body { max-width: 1120px; margin: 24px auto; padding: 0 12px }</style></head><body>"
        f"{gallery_html(rows)}</body></html>"
    )
    return write_whole(path, page)


def _row(row: FeatureRow) -> str:
    note = f"<p>{escape(row.note)}</p>" if row.note else ""
    tiles = "".join(map(_tile, row.tiles))
    return f'<section><h3>{escape(row.title)}</h3>{note}<div class="row">{tiles}</div></section>'


def _tile(tile: Tile) -> str:
    small = tile.picture.convert("RGB")
    small.thumbnail((2 * _SIDE, 2 * _SIDE))
    width, height = tile.picture.size
    cells = "".join(
        f'<div class="cell" style="{_place(box, width, height)};opacity:{0.62 * share:.2f}"></div>'
        for box, share in tile.cells
        if share > 0.02
    )
    best = ""
    if tile.best is not None:
        best = f'<div class="best" style="{_place(tile.best, width, height)}"></div>'
    caption = f"<b>{tile.value:.3g}</b> {escape(tile.caption)}"
    alt = escape(tile.caption or "a picture", quote=True)
    return (
        f'<figure><div class="shown"><img src="{picture_uri(small)}" alt="{alt}">{cells}{best}'
        f"</div><figcaption>{caption}</figcaption></figure>"
    )


def _place(box: Box, width: int, height: int) -> str:
    x0, y0, x1, y1 = (
        min(max(edge / full, 0.0), 1.0) * 100
        for edge, full in zip(box, (width, height) * 2, strict=True)
    )
    return f"left:{x0:.2f}%;top:{y0:.2f}%;width:{x1 - x0:.2f}%;height:{y1 - y0:.2f}%"


__all__ = ["FeatureRow", "Tile", "gallery_html", "save_gallery"]
