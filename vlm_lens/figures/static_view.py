"""The same numbers over pictures and tokens, drawn by matplotlib: PNG, SVG or PDF, no browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlm_lens.errors import VLMLensError
from vlm_lens.figures.prompt_view import canvas, cell_edges, visible
from vlm_lens.figures.view_parts import (
    MOST_OPAQUE,
    RULED,
    Cell,
    Token,
    drawings,
    peak,
    strengths,
)
from vlm_lens.layout.kinds import PAD, runs
from vlm_lens.storage.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

    from vlm_lens.layout.geometry import PatchGrid

_ENDINGS = (".png", ".svg", ".pdf")

_PLUS, _MINUS = (213 / 255, 94 / 255, 0.0), (0.0, 114 / 255, 178 / 255)


def draw(
    path: Path,
    values: np.ndarray,
    cells: Sequence[Cell],
    tokens: Sequence[Token],
    grids: Mapping[tuple[int, int], PatchGrid],
    pictures: Sequence[Image.Image],
    title: str,
) -> Path:
    """Writes numbers over pictures and tokens as a picture; see `PictureView`.

    Args:
        path: The file; its ending says what kind.
        values: A number for each place.
        cells: The patches.
        tokens: The tokens.
        grids: (picture, grid) -> the grid.
        pictures: The pictures as given; fewer where they are not known.
        title: What is shown.

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
    colours = strengths(values, cells)
    largest = peak(values[[c.index for c in cells]])
    drawn = list(drawings(grids))
    lines = _lines(tokens, colours)
    rows = len(drawn)
    ratios = [_height([grids[image, n] for n in numbers]) for image, numbers in drawn]
    ratios += [0.32 * len(lines) + 0.1] if lines else []
    fig = Figure(figsize=(7.2, sum(ratios) + 0.6), layout="constrained")
    layout = fig.add_gridspec(len(ratios), 2, height_ratios=ratios)
    for i, (image, numbers) in enumerate(drawn):
        plain, heat = fig.add_subplot(layout[i, 0]), fig.add_subplot(layout[i, 1])
        mine = {n: grids[image, n] for n in numbers}
        here = [c for c in cells if c.image == image and c.grid in mine]
        picture = pictures[image] if image < len(pictures) else None
        _picture(plain, heat, picture, mine, here, colours)
        many = sum(1 for i, _ in grids if i == image) > 1
        which = (": the whole picture" if 0 in numbers else ": its tiles") if many else ""
        plain.set_title(f"image {image}{which}", fontsize=9, loc="left")
        heat.set_title(f"strongest of all patches: {largest:.3g}", fontsize=9, loc="left")
    if lines:
        below = fig.add_subplot(layout[rows, :])
        _tokens(below, lines)
        patches = {c.index for c in cells}
        named = [t.index for t in tokens if t.index is not None and t.index not in patches]
        if named and patches:
            said = f"tokens, set against the strongest of them: {peak(values[named]):.3g}"
            below.set_title(said, fontsize=9, loc="left")
    fig.suptitle(title, fontsize=10)
    return write_whole(path, lambda to: fig.savefig(to, format=path.suffix[1:], dpi=150))


def _height(grids: Sequence[PatchGrid]) -> float:
    """Inches for a drawing of some grids, half a page wide, and its title."""
    x0, y0, x1, y1 = canvas(grids, grids[0].pixels_of.picture)
    return min(max(3.4 * (y1 - y0) / (x1 - x0), 1.2), 4.5) + 0.3


def _picture(
    plain: Axes,
    heat: Axes,
    picture: Image.Image | None,
    grids: Mapping[int, PatchGrid],
    cells: Sequence[Cell],
    colours: np.ndarray,
) -> None:
    """The picture as given, and in grey under its patches."""
    from matplotlib.patches import Rectangle

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
    for cell in cells:
        xs, ys = cell_edges(grids[cell.grid])
        row, col = cell.at
        strength = float(colours[cell.index])
        hue = _MINUS if strength < 0 else _PLUS
        heat.add_patch(
            Rectangle(
                (xs[col], ys[row]), xs[col + 1] - xs[col], ys[row + 1] - ys[row],
                facecolor=(*hue, MOST_OPAQUE * abs(strength)), edgecolor=(1, 1, 1, 0.25),
                linewidth=0.4 if len(cells) <= RULED else 0,
            )
        )  # fmt: skip


def _lines(tokens: Sequence[Token], colours: np.ndarray, width: int = 88) -> list[list[tuple]]:
    """Tokens in lines: (text, strength) each."""
    pieces: list[tuple[str, float]] = []
    for kind, start, stop in runs([t.kind for t in tokens]):
        if kind == PAD:
            continue
        if kind.medium:
            pieces.append((f"<{kind}>", 0.0))
            continue
        for token in tokens[start:stop]:
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


def _tokens(axes: Axes, lines: Sequence[Sequence[tuple[str, float]]]) -> None:
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
                bbox={"facecolor": (*hue, MOST_OPAQUE * abs(strength)),
                      "edgecolor": (0.5, 0.5, 0.5, 0.5), "boxstyle": "round,pad=0.25",
                      "linewidth": 0.5},
            )  # fmt: skip
            x += len(text) + 2
