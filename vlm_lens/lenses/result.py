"""What a lens has seen: plain arrays, a table, and figures on top."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from vlm_lens.errors import PointError, PositionError
from vlm_lens.layout.layout import Layout
from vlm_lens.terms import EMBED, Layer

if TYPE_CHECKING:  # xarray and pandas are imported when scores are made
    import pandas as pd
    import plotly.graph_objects as go

    from vlm_lens.figures.lens_words import Words
    from vlm_lens.scores import Scores


@dataclass(frozen=True, eq=False)
class LensRow:
    """One prompt seen through a lens.

    What is called a probability is the lens's own measure: a cosine similarity where states are
    compared with others (`LensResult.measure`).

    Attributes:
        layout: The prompt's coordinates.
        positions: The positions that were read.
        top_ids: The leading entries (of most lenses, tokens), first the best.
        top_probs: Their probabilities.
        token_probs: Probabilities of the chosen tokens.
        token_ranks: Their ranks among all entries, 0 for the best.
        entropy: Of the whole distribution, in nats; `None` for a lens that has none.
        kl: KL(what the model says there || what the lens says), in nats, likewise.
        sources: Of each leading entry the number of what it was found by; see
            `LensResult.sources`.
        in_rows: The activation's row of each position, where they are the tower's.
    """

    layout: Layout
    positions: tuple[int, ...]
    top_ids: Int[Tensor, "layers positions k"]
    top_probs: Float[Tensor, "layers positions k"]
    token_probs: Float[Tensor, "layers positions tokens"]
    token_ranks: Int[Tensor, "layers positions tokens"]
    entropy: Float[Tensor, "layers positions"] | None = None
    kl: Float[Tensor, "layers positions"] | None = None
    sources: Int[Tensor, "layers positions k"] | None = None
    in_rows: tuple[int, ...] = ()

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The activation's row, and the position, of each place that was read."""
        rows = self.in_rows or [self.layout.row] * len(self.positions)
        return list(zip(rows, self.positions, strict=True))


@dataclass(frozen=True, eq=False)
class LensResult:
    """What a lens says, by layer and position.

    Attributes:
        points: The points that were read, one a layer.
        rows: One entry a prompt of the batch.
        token_ids: The chosen tokens.
        labels: Entry -> its text; of most lenses, token id -> token.
        pictures: The pictures of each prompt.
        model: The model's name.
        lens: The lens's name.
        measure: What the values are: `"probability"`, `"cosine similarity"`.
        title: What a figure of it shows.
        sources: Number -> what an entry was found by: a context and a block, say.
        space: Whose positions they are: `"text"`, or `"vision"`, the tower's.
    """

    points: tuple[str, ...]
    rows: tuple[LensRow, ...]
    token_ids: tuple[int, ...] = ()
    labels: Mapping[int, str] = field(default_factory=dict, repr=False)
    pictures: tuple[tuple[Image.Image, ...], ...] = field(default=(), repr=False)
    model: str = ""
    lens: str = "LogitLens"
    measure: str = "probability"
    title: str = "What each layer would say next"
    sources: Mapping[int, str] = field(default_factory=dict, repr=False)
    space: str = "text"

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
        index, mine = self.index(layer), self._row(row)
        ids, probs = mine.top_ids[index, position], mine.top_probs[index, position]
        return [(self.labels[int(i)], float(p)) for i, p in zip(ids, probs, strict=True)]

    def index(self, layer: Layer | str) -> int:
        """The number of a layer among `points`; see `top`."""
        known = dict(zip(self.layers, range(len(self.points)), strict=True))
        known |= dict(zip(self.points, range(len(self.points)), strict=True))
        index = len(self.points) - 1 if layer == -1 else known.get(layer)
        if index is None:
            listed = ", ".join(map(str, self.layers))
            raise PointError(f"Layer {layer!r} was not decoded; there are {listed}.")
        return index

    def _row(self, row: int) -> LensRow:
        if not -len(self.rows) <= row < len(self.rows):
            raise PositionError(f"This result has {len(self.rows)} row(s); row {row} was asked.")
        return self.rows[row]

    def scores(self, of: str = "top", *, row: int = 0) -> Scores:
        """One number for each layer and position, over the picture, over tokens, ranked, saved.

        Args:
            of: `"top"`, the value of the best entry; `"token"` and `"rank"`, value and rank of the
                chosen tokens; `"entropy"` of the distribution; `"kl"`, how far it is from what the
                model says in the end.
            row: Which prompt.

        Returns:
            Scores by `layer` and `position`, and by `token` for several chosen tokens.

        Raises:
            ScoresError: The lens has no such number, or no token was chosen.
            PositionError: There is no such row.
        """
        from vlm_lens.scores.refusal import ScoresError
        from vlm_lens.scores.scores import scores

        mine = self._row(row)
        found = {
            "top": (mine.top_probs[..., 0], self.measure),
            "token": (mine.token_probs, self.measure),
            "rank": (mine.token_ranks, "rank"),
            "entropy": (mine.entropy, "entropy in nats"),
            "kl": (mine.kl, "KL to the model's output, in nats"),
        }
        if of not in found:
            raise ScoresError(f"of is one of {', '.join(map(repr, found))}, not {of!r}.")
        values, name = found[of]
        if values is None:
            raise ScoresError(f"{self.lens} gives no distribution, so there is no {of}.")
        axes = {"layer": self.layers, "position": mine.positions}
        about = {"lens": self.lens, "model": self.model}
        if of in ("token", "rank"):
            tokens = [self.labels[t] for t in self.token_ids]
            if not tokens:
                raise ScoresError("No token was chosen: give the lens tokens=(' Paris',).")
            if len(tokens) > 1:
                axes["token"] = tokens
            else:
                values, name = values[..., 0], f"{name} of {tokens[0]!r}"
        pictures = self.pictures[row] if self.pictures else ()
        return scores(
            values.numpy(), axes, rows=mine.in_rows or None, name=name, layout=mine.layout,
            pictures=pictures, about=about, space=self.space,
        )  # fmt: skip

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each prompt, point, position and rank among the most likely tokens.

        The column `layer` has the 0-based block, or `embed`; see `layers`. `entropy` and `kl` are
        those of the whole distribution, the same in all rows of a place.
        """
        import pandas as pd

        from vlm_lens.scores.places import places

        records = []
        for i, row in enumerate(self.rows):
            for number, (layer, point) in enumerate(zip(self.layers, self.points, strict=True)):
                for index, place in enumerate(places(row.layout, self.space, row.pairs)):
                    base: dict[str, Any] = {
                        "row": i,
                        "point": point,
                        "layer": layer,
                        "position": place.position,
                        "at": place.token,
                        "kind": place.kind,
                    }
                    for t, token in enumerate(self.token_ids):
                        label = self.labels[token]
                        base[f"p({label!r})"] = float(row.token_probs[number, index, t])
                        base[f"rank({label!r})"] = int(row.token_ranks[number, index, t])
                    for name in ("entropy", "kl"):
                        if (values := getattr(row, name)) is not None:
                            base[name] = float(values[number, index])
                    for rank in range(row.top_ids.shape[-1]):
                        token = int(row.top_ids[number, index, rank])
                        prob = float(row.top_probs[number, index, rank])
                        found = {"rank": rank, "token": self.labels[token], "prob": prob}
                        if row.sources is not None:
                            found["source"] = self.sources[int(row.sources[number, index, rank])]
                        records.append({**base, **found})
        return pd.DataFrame(records)

    def plot(self, *, row: int = 0) -> go.Figure:
        """Layers by positions, coloured by the top token's probability; hover shows the top ten.

        Args:
            row: Which prompt.

        Raises:
            PositionError: There is no such row.
        """
        from vlm_lens.figures.lens import lens_figure

        return lens_figure(self.words(row))

    def plot_image(
        self,
        image: int = 0,
        *,
        row: int = 0,
        grid: int | None = None,
        layer: Layer | str = -1,
    ) -> go.Figure:
        """Decodings drawn over one picture, with a slider over layers.

        Args:
            image: Which picture of the prompt.
            row: Which prompt.
            grid: Which of the picture's grids, on families that also cut it into tiles; by default
                the first of which something was decoded.
            layer: Which layer is shown at first; see `top`.

        Raises:
            PositionError: There is no such row or picture, or nothing of it was decoded.
            PointError: This layer was not decoded.
        """
        from vlm_lens.figures.lens import lens_image_figure

        first = self.index(layer)
        return lens_image_figure(self.words(row), image=image, grid=grid, first=first)

    def words(self, row: int = 0) -> Words:
        """What figures show of one prompt."""
        from vlm_lens.figures.lens_words import Words

        mine = self._row(row)
        return Words(
            mine.layout, mine.positions, self.points, mine.top_ids, mine.top_probs,
            self.token_ids, mine.token_probs, mine.token_ranks, self.labels,
            self.pictures[row] if self.pictures else (), self.model,
            lens=self.lens, measure=self.measure, title=self.title,
            source_ids=mine.sources, sources=self.sources, space=self.space, rows=mine.in_rows,
        )  # fmt: skip

    def __repr__(self) -> str:
        places = sum(len(r.positions) for r in self.rows)
        return (
            f"LensResult({self.lens}: {len(self.points)} layers, {places} "
            f"position{'s' * (places != 1)}, {self.model})"
        )

    def _repr_html_(self) -> str:
        table = self.to_dataframe()
        return table[table["rank"] == 0].drop(columns="rank").to_html(index=False, max_rows=40)


def _layer_of(point: str) -> Layer | str:
    match = re.fullmatch(r"(?:vision\.)?blocks\.(\d+)\..+", point)
    return int(match[1]) if match else EMBED if point == "hook_merged" else point
