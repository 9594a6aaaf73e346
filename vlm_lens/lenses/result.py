"""What a lens has seen: plain arrays, a table, and figures on top."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from vlm_lens.errors import PointError, PositionError
from vlm_lens.layout.layout import Layout
from vlm_lens.terms import EMBED, Layer

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from vlm_lens.figures.lens_words import Words


@dataclass(frozen=True, eq=False)
class LensRow:
    """One prompt seen through a lens.

    Attributes:
        layout: The prompt's coordinates.
        positions: The positions that were decoded.
        top_ids: The most likely tokens, `[layers, positions, k]`.
        top_probs: Their probabilities, likewise.
        token_probs: Probabilities of the chosen tokens, `[layers, positions, tokens]`.
        token_ranks: Their ranks in the whole vocabulary, 0 for the most likely, likewise.
    """

    layout: Layout
    positions: tuple[int, ...]
    top_ids: Tensor
    top_probs: Tensor
    token_probs: Tensor
    token_ranks: Tensor


@dataclass(frozen=True, eq=False)
class LensResult:
    """Decodings by layer and position.

    Attributes:
        points: The decoded points, one a layer.
        rows: One entry a prompt of the batch.
        token_ids: The chosen tokens.
        labels: Token id -> its text.
        pictures: The pictures of each prompt.
        model: The model's name.
    """

    points: tuple[str, ...]
    rows: tuple[LensRow, ...]
    token_ids: tuple[int, ...] = ()
    labels: Mapping[int, str] = field(default_factory=dict, repr=False)
    pictures: tuple[tuple[Image.Image, ...], ...] = field(default=(), repr=False)
    model: str = ""

    @property
    def layers(self) -> tuple[Layer | str, ...]:
        """The layer of each decoded point; where a block has several, the points' names."""
        found = [_layer_of(point) for point in self.points]
        return tuple(found) if len(set(found)) == len(found) else self.points

    def top(
        self, layer: Layer | str, position: int = -1, *, row: int = 0
    ) -> list[tuple[str, float]]:
        """The most likely tokens with their probabilities.

        Args:
            layer: Which of `layers`: a 0-based block (-1 for the last), `"embed"`, or a point.
            position: Which of the decoded positions, by index into `rows[row].positions`.
            row: Which prompt.

        Raises:
            PointError: This layer was not decoded.
        """
        known = dict(zip(self.layers, range(len(self.points)), strict=True))
        known |= dict(zip(self.points, range(len(self.points)), strict=True))
        index = -1 if layer == -1 else known.get(layer)
        if index is None:
            listed = ", ".join(map(str, self.layers))
            raise PointError(f"Layer {layer!r} was not decoded; there are {listed}.")
        mine = self.rows[row]
        ids, probs = mine.top_ids[index, position], mine.top_probs[index, position]
        return [(self.labels[int(i)], float(p)) for i, p in zip(ids, probs, strict=True)]

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each prompt, point, position and rank among the most likely tokens.

        The column `layer` has the 0-based block, or `embed`; see `layers`.
        """
        import pandas as pd

        records = []
        for i, row in enumerate(self.rows):
            for number, (layer, point) in enumerate(zip(self.layers, self.points, strict=True)):
                for index, position in enumerate(row.positions):
                    base: dict[str, Any] = {
                        "row": i,
                        "point": point,
                        "layer": layer,
                        "position": position,
                        "at": row.layout.strings[position] if row.layout.strings else None,
                        "kind": row.layout.kinds[position],
                    }
                    for t, token in enumerate(self.token_ids):
                        label = self.labels[token]
                        base[f"p({label!r})"] = float(row.token_probs[number, index, t])
                        base[f"rank({label!r})"] = int(row.token_ranks[number, index, t])
                    for rank in range(row.top_ids.shape[-1]):
                        token = int(row.top_ids[number, index, rank])
                        prob = float(row.top_probs[number, index, rank])
                        records.append(
                            {**base, "rank": rank, "token": self.labels[token], "prob": prob}
                        )
        return pd.DataFrame(records)

    def plot(self, *, row: int = 0) -> go.Figure:
        """Layers by positions, coloured by the top token's probability; hover shows the top ten.

        Args:
            row: Which prompt.

        Raises:
            PositionError: There is no such row.
        """
        from vlm_lens.figures.lens import lens_figure

        return lens_figure(self._words(row))

    def plot_image(self, image: int = 0, *, row: int = 0, grid: int | None = None) -> go.Figure:
        """Decodings drawn over one picture, with a slider over layers.

        Args:
            image: Which picture of the prompt.
            row: Which prompt.
            grid: Which of the picture's grids, on families that also cut it into tiles; by default
                the first of which something was decoded.

        Raises:
            PositionError: There is no such row or picture, or nothing of it was decoded.
        """
        from vlm_lens.figures.lens import lens_image_figure

        return lens_image_figure(self._words(row), image=image, grid=grid)

    def _words(self, row: int) -> Words:
        """What figures show of one prompt."""
        from vlm_lens.figures.lens_words import Words

        if not -len(self.rows) <= row < len(self.rows):
            raise PositionError(f"This result has {len(self.rows)} row(s); row {row} was asked.")
        mine = self.rows[row]
        return Words(
            mine.layout, mine.positions, self.points, mine.top_ids, mine.top_probs,
            self.token_ids, mine.token_probs, mine.token_ranks, self.labels,
            self.pictures[row] if self.pictures else (), self.model,
        )  # fmt: skip

    def __repr__(self) -> str:
        places = sum(len(r.positions) for r in self.rows)
        return (
            f"LensResult({len(self.points)} layers, {places} position{'s' * (places != 1)}, "
            f"{self.model})"
        )

    def _repr_html_(self) -> str:
        table = self.to_dataframe()
        return table[table["rank"] == 0].drop(columns="rank").to_html(index=False, max_rows=40)


def _layer_of(point: str) -> Layer | str:
    match = re.fullmatch(r"blocks\.(\d+)\..+", point)
    return int(match[1]) if match else EMBED if point == "hook_merged" else point
