"""The same numbers over pictures and tokens, drawn by matplotlib: PNG, SVG or PDF, no browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlm_lens.errors import VLMLensError
from vlm_lens.figures.picture_view import _shown, strengths
from vlm_lens.figures.prompt_view import canvas, cell_edges, runs, visible

if TYPE_CHECKING:
    from vlm_lens.figures.picture_view import PictureView

_ENDINGS = (".png", ".svg", ".pdf")
_PLUS, _MINUS = (213 / 255, 94 / 255, 0.0), (0.0, 114 / 255, 178 / 255)


def draw(view: PictureView, path: Path, setting: tuple[int, ...]) -> Path:
    """Writes one setting of a view as a picture.

    Raises:
        VLMLensError: Another ending, or matplotlib is not installed.
    """
    if path.suffix not in _ENDINGS:
        raise VLMLensError(f"{path.name}: a view is saved as .html, {', '.join(_ENDINGS)}.")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise VLMLensError(
            "Pictures are drawn by matplotlib: pip install 'vlm-lens[static]', or save as .html."
        ) from None
    values = view.values[setting]
    colours = strengths(values)
    drawn = list(_shown(view))
    lines = _lines(view, colours)
    rows = len(drawn) or 0
    height = 3.2 * rows + 0.32 * len(lines) + 0.6
    fig = Figure(figsize=(7.2, height), layout="constrained")
    ratios = [3.2] * rows + ([0.32 * len(lines) + 0.1] if lines else [])
    grid = fig.add_gridspec(len(ratios), 2, height_ratios=ratios)
    for i, (image, numbers) in enumerate(drawn):
        plain, heat = fig.add_subplot(grid[i, 0]), fig.add_subplot(grid[i, 1])
        _picture(view, plain, heat, image, numbers, colours)
        plain.set_title(f"image {image}", fontsize=9, loc="left")
        heat.set_title(f"largest {np.nanmax(np.abs(values)):.3g}", fontsize=9, loc="left")
    if lines:
        _tokens(fig.add_subplot(grid[rows, :]), lines)
    said = [f"{a} {v[i]}" for (a, v), i in zip(view.sliders.items(), setting, strict=True)]
    fig.suptitle(", ".join([view.name, *filter(None, (view.subtitle,)), *said]), fontsize=10)
    fig.savefig(path, dpi=150)
    return path


def _picture(view, plain, heat, image, numbers, colours) -> None:
    from matplotlib.patches import Rectangle

    grids = {n: view.grids[image, n] for n in numbers}
    picture = view.pictures[image] if image < len(view.pictures) else None
    size = picture.size if picture is not None else next(iter(grids.values())).pixels_of.picture
    x0, y0, x1, y1 = canvas(grids.values(), size)
    for axes in (plain, heat):
        axes.set_xlim(x0, x1)
        axes.set_ylim(y1, y0)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
    if picture is not None:
        shown = np.asarray(picture.convert("RGB"))
        extent = (0, size[0], size[1], 0)
        plain.imshow(shown, extent=extent)
        grey = np.asarray(picture.convert("L"), dtype=float) * 0.6 + 80
        heat.imshow(grey, extent=extent, cmap="gray", vmin=0, vmax=255)
    for cell in view.cells:
        if cell.image != image or cell.grid not in grids:
            continue
        xs, ys = cell_edges(grids[cell.grid])
        row, col = cell.at
        strength = float(colours[cell.index])
        hue = _MINUS if strength < 0 else _PLUS
        heat.add_patch(
            Rectangle(
                (xs[col], ys[row]), xs[col + 1] - xs[col], ys[row + 1] - ys[row],
                facecolor=(*hue, 0.85 * abs(strength)), edgecolor=(1, 1, 1, 0.25), linewidth=0.4,
            )
        )  # fmt: skip


def _lines(view: PictureView, colours: np.ndarray, width: int = 88) -> list[list[tuple]]:
    """Tokens in lines: (text, strength) each."""
    pieces: list[tuple[str, float]] = []
    for kind, start, stop in runs([t.kind for t in view.tokens]):
        if kind == "pad":
            continue
        if kind.startswith("image"):
            pieces.append((f"<{kind}>", 0.0))
            continue
        for token in view.tokens[start:stop]:
            strength = 0.0 if token.index is None else float(colours[token.index])
            pieces.append((visible(token.string, 24), strength))
    lines: list[list[tuple[str, float]]] = []
    used = width
    for text, strength in pieces:
        if used + len(text) + 2 > width:
            lines.append([])
            used = 0
        lines[-1].append((text, strength))
        used += len(text) + 2
    return lines


def _tokens(axes, lines) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, 88)
    axes.set_ylim(len(lines), 0)
    for y, line in enumerate(lines):
        x = 0.0
        for text, strength in line:
            hue = _MINUS if strength < 0 else _PLUS
            axes.text(
                x + 0.5, y + 0.5, text.replace("$", r"\$"), fontsize=7.5, family="monospace",
                va="center",
                bbox={"facecolor": (*hue, 0.85 * abs(strength)), "edgecolor": (0.5, 0.5, 0.5, 0.5),
                      "boxstyle": "round,pad=0.25", "linewidth": 0.5},
            )  # fmt: skip
            x += len(text) + 2
