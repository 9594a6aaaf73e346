"""The words that figures of a lens show: tokens, labels of positions and layers, hover texts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape

from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from vlm_lens.errors import PositionError
from vlm_lens.figures.prompt_view import runs, visible
from vlm_lens.layout.layout import Layout
from vlm_lens.terms import EMBED

LETTERS = 8  # of a token that fit into a column
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


@dataclass(frozen=True, eq=False)
class Words:
    """What a lens says of one prompt, as texts that plotly may show: escaped, short where asked.

    Attributes:
        layout: The prompt's coordinates.
        positions: The positions that were decoded.
        points: The points that were decoded, one a layer.
        top_ids: The leading entries: of most lenses, tokens.
        top_probs: Their values.
        asked: Tokens whose values are known too, leading or not.
        asked_probs: Their values.
        asked_ranks: Their ranks among all entries, 0 for the best.
        labels: Entry -> its text.
        pictures: The prompt's pictures, as far as they are known.
        model: The model's name.
        lens: The lens's name.
        measure: What the values are.
        title: What the lens shows.
        source_ids: Of each leading entry the number of what it was found by.
        sources: What these numbers stand for.

    Raises:
        PositionError: Nothing was decoded.
    """

    layout: Layout
    positions: Sequence[int]
    points: Sequence[str]
    top_ids: Int[Tensor, "layers positions k"]
    top_probs: Float[Tensor, "layers positions k"]
    asked: Sequence[int]
    asked_probs: Float[Tensor, "layers positions asked"]
    asked_ranks: Int[Tensor, "layers positions asked"]
    labels: Mapping[int, str]
    pictures: Sequence[Image.Image] = ()
    model: str = ""
    lens: str = "LogitLens"
    measure: str = "probability"
    title: str = "What each layer would say next"
    source_ids: Int[Tensor, "layers positions k"] | None = None
    sources: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.positions:
            raise PositionError("The lens decoded no position of this prompt.")

    @property
    def layers(self) -> range:
        """The numbers of the decoded points."""
        return range(len(self.points))

    def top(self, layer: int, i: int, *, most: int = LETTERS, rank: int = 0) -> str:
        """A decoded token, cut to `most` letters."""
        token = self.labels[int(self.top_ids[layer, i, rank])]
        return escape(visible(token, most), quote=False)

    def hover(self, layer: int, i: int, depth: int = 10) -> str:
        """Where, at which layer, and the leading entries with their values."""
        place, point = self._places[self.positions[i]], self.points[layer]
        return "<br>".join([place, escape(point), *self._decoded(layer, i, depth)])

    def _decoded(self, layer: int, i: int, depth: int) -> Iterator[str]:
        ids, probs = self.top_ids[layer, i, :depth], self.top_probs[layer, i, :depth]
        for rank, (token, prob) in enumerate(zip(ids.tolist(), probs.tolist(), strict=True)):
            value = f"{prob:6.1%}" if self.likely else f"{prob:.3f}"
            source = ""
            if self.source_ids is not None:
                source = f"  {escape(self.sources[int(self.source_ids[layer, i, rank])])}"
            yield f"{value}  {escape(repr(self.labels[token]), quote=False)}{source}"
        for t, token in enumerate(self.asked):
            prob, rank = float(self.asked_probs[layer, i, t]), int(self.asked_ranks[layer, i, t])
            value = f"{prob:.2%}" if self.likely else f"{prob:.3f}"
            yield f"asked: {escape(repr(self.labels[token]), quote=False)} {value}, rank {rank}"

    @property
    def likely(self) -> bool:
        """Whether the values are probabilities."""
        return self.measure == "probability"

    @property
    def subtitle(self) -> str:
        """Model, lens, and what a colour means."""
        lens = "" if self.lens == "LogitLens" else f", {self.lens}"
        return f"{escape(self.model)}{lens}"

    @cached_property
    def _places(self) -> dict[int, str]:
        """What stands at each position, as hovering says it."""
        places = {}
        for image in self.layout.images:
            name = f"image {image.index}"
            places |= dict.fromkeys(image.positions, name)
            for number, grid in enumerate(image.text.grids):
                of = f" of grid {number}" if len(image.text.grids) > 1 else ""
                for k, position in enumerate(grid.positions):
                    x0, y0, x1, y1 = grid.pixels(position)
                    seen = f"pixels ({x0:.0f}, {y0:.0f}, {x1:.0f}, {y1:.0f})"
                    seen = seen if x0 < x1 and y0 < y1 else "padding around the picture"
                    places[position] = f"{name}, patch {divmod(k, grid.cols)}{of}<br>{seen}"
        return {p: f"<b>position {p}</b>, {places.get(p) or self.token(p)}" for p in self.positions}

    def token(self, position: int) -> str:
        """The prompt's own token, as Python writes it."""
        if not self.layout.strings:
            return f"token id {self.layout.token_ids[position]}"
        return escape(repr(self.layout.strings[position]), quote=False)

    def column(self, position: int) -> str:
        """The label of one position: its number, and the token or patch that stands there."""
        kind = self.layout.kinds[position]
        if kind.startswith("image"):
            grids = [g for im in self.layout.images for g in im.text.grids]
            cells = [g.cell(position) for g in grids if position in g.positions]
            return f"{position}<br>{cells[0] if cells else kind}"
        strings = self.layout.strings
        text = visible(strings[position], LETTERS) if strings else "?"
        return f"{position}<br>{escape(text, quote=False)}"

    def run(self, image: int, indices: Sequence[int]) -> str:
        """The label of a stretch of one picture's positions."""
        first, last = self.positions[indices[0]], self.positions[indices[-1]]
        grid = self.layout.images[image].grid
        whole = grid is not None and len(indices) == len(grid.positions)
        size = f"{grid.rows} x {grid.cols} patches" if whole else f"{len(indices)} positions"
        return f"{first}..{last}<br>image {image}<br>{size}"

    def stretches(self) -> Iterator[tuple[int | None, list[int]]]:
        """The decoded positions, cut where a picture's begin or end; `None` stands for text."""
        kinds = [self.layout.kinds[p] for p in self.positions]
        for kind, start, stop in runs([k if k.startswith("image") else "text" for k in kinds]):
            yield None if kind == "text" else int(kind.split()[1]), list(range(start, stop))

    def layer(self, number: int) -> str:
        """The label of a layer: its 0-based block, or `embed`."""
        point = self.points[number]
        match = _BLOCK.fullmatch(point)
        return match[1] if match else EMBED if point == "hook_merged" else point

    @property
    def of_layers(self) -> str:
        """What the layers are."""
        kinds = {m[2]: None for p in self.points if (m := _BLOCK.fullmatch(p))}
        return "output of block" if list(kinds) == ["hook_resid_post"] else ", ".join(kinds)
