"""What back-patching gains, for each pair of source and target block."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from vlm_lens.figures.cell_text import legible_cells
from vlm_lens.figures.style import PALETTE, style

__all__ = ["pair_map"]

# From loss to gain; Okabe and Ito's vermillion and blue, grey between.
_DIVERGING = [[0.0, PALETTE["vermillion"]], [0.5, "#B8B8B8"], [1.0, PALETTE["blue"]]]


def pair_map(
    accuracy: pd.DataFrame, *, without: float, chosen: tuple[int, int], under: str
) -> go.Figure:
    """Gain in validation accuracy by target and source block.

    Args:
        accuracy: Target blocks by source blocks.
        without: The accuracy without back-patching.
        chosen: Source and target block to frame.
        under: What was back-patched: `"prompt"` or `"patch"`.

    Returns:
        The figure.
    """
    gain = accuracy - without
    most = max(0.02, float(gain.abs().max().max()))
    small = len(gain) <= 12
    heat = go.Heatmap(
        x=gain.columns,
        y=gain.index,
        z=gain.to_numpy(),
        texttemplate="%{z:+.2f}" if small else None,
        colorscale=_DIVERGING,
        zmin=-most,
        zmax=most,
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": "gain"}, "thickness": 12, "tickformat": "+.2f"},
        hovertemplate="block %{x} written over block %{y}: %{z:+.3f}<extra></extra>",
    )
    source, target = chosen
    fig = go.Figure(heat)
    fig.add_shape(
        type="rect",
        x0=source - 0.5,
        x1=source + 0.5,
        y0=target - 0.5,
        y1=target + 0.5,
        line={"color": PALETTE["orange"], "width": 3},
    )
    style(
        fig,
        title=f"Back-patching under {'the few-shot prompt' if under == 'prompt' else 'the patch'}",
        subtitle=f"Gain in validation accuracy (without: {without:.2f}), mean over tasks and "
        "seeds; framed: chosen",
        x="source: block whose output is taken (0-based)",
        y="target: block whose output is replaced",
        height=480,
        width=640,
    )
    dtick = 1 if small else 4
    fig.update_xaxes(showgrid=False, zeroline=False, dtick=dtick)
    fig.update_yaxes(showgrid=False, zeroline=False, dtick=dtick)
    return legible_cells(fig)
