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
from vlm_lens.figures.prompt_view import visible
from vlm_lens.layout.kinds import TEXT, Kind, runs
from vlm_lens.layout.layout import Layout
from vlm_lens.terms import EMBED

LETTERS = 8  # of a token that fit into a column
_BLOCK = re.compile(r"(?:vision\.)?blocks\.(\d+)\.(.+)")


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
        space: Whose positions they are: `"text"`, or `"vision"`, the tower's.
        rows: The activation's row of each position, in the tower.

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
    space: str = "text"
    rows: Sequence[int] = ()

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
        place, point = self._place(i), self.points[layer]
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
    def pairs(self) -> list[tuple[int, int]]:
        """The activation's row, and the position, of each decoding."""
        rows = self.rows or [self.layout.row] * len(self.positions)
        return list(zip(rows, self.positions, strict=True))

    @cached_property
    def kinds(self) -> list[Kind]:
        """What stands at each decoded position: `"text"`, `"image 0"`, ..."""
        if self.space == "text":
            return [self.layout.kinds[p] for p in self.positions]
        owner = {
            (row, p): Kind(f"image {image.index}")
            for image in self.layout.images
            for row, positions in image.space(self.space).sequences
            for p in positions
        }
        return [owner.get(pair, Kind(self.space)) for pair in self.pairs]

    @cached_property
    def _patches(self) -> dict[tuple[int, int], str]:
        """What stands at each position of a picture, as hovering says it."""
        places = {}
        for image in self.layout.images:
            space, name = image.space(self.space), f"image {image.index}"
            places |= {(row, p): name for row, positions in space.sequences for p in positions}
            for number, grid in enumerate(space.grids):
                of = f" of grid {number}" if len(space.grids) > 1 else ""
                for k, position in enumerate(grid.positions):
                    x0, y0, x1, y1 = grid.pixels(position)
                    seen = f"pixels ({x0:.0f}, {y0:.0f}, {x1:.0f}, {y1:.0f})"
                    seen = seen if x0 < x1 and y0 < y1 else "padding around the picture"
                    patch = f"{name}, patch {divmod(k, grid.cols)}{of}<br>{seen}"
                    places[grid.row, position] = patch
        return places

    def _place(self, i: int) -> str:
        what = self._patches.get(self.pairs[i]) or self.token(i)
        return f"<b>position {self.positions[i]}</b>, {what}"

    def token(self, i: int) -> str:
        """The prompt's own token at a decoded position, as Python writes it."""
        if self.space != "text":
            return self.kinds[i]
        position = self.positions[i]
        if not self.layout.strings:
            return f"token id {self.layout.token_ids[position]}"
        return escape(repr(self.layout.strings[position]), quote=False)

    def column(self, i: int) -> str:
        """The label of one decoded position: its number, and the token or patch there."""
        position, kind = self.positions[i], self.kinds[i]
        if kind.medium == "image":
            grids = [g for im in self.layout.images for g in im.space(self.space).grids]
            cells = [g.cell(p) for g in grids for row, p in [self.pairs[i]]
                     if row == g.row and p in g.positions]  # fmt: skip
            return f"{position}<br>{cells[0] if cells else kind}"
        strings = self.layout.strings
        text = visible(strings[position], LETTERS) if strings else "?"
        return f"{position}<br>{escape(text, quote=False)}"

    def run(self, kind: Kind, indices: Sequence[int]) -> str:
        """The label of a stretch of one picture's, or video's, positions."""
        first, last = self.positions[indices[0]], self.positions[indices[-1]]
        pictured = kind.medium == "image"
        grids = self.layout.images[kind.number].space(self.space).grids if pictured else ()
        whole = bool(grids) and len(indices) == len(grids[0].positions)
        size = (
            f"{grids[0].rows} x {grids[0].cols} patches" if whole else f"{len(indices)} positions"
        )
        return f"{first}..{last}<br>{kind}<br>{size}"

    def stretches(self) -> Iterator[tuple[Kind, list[int]]]:
        """The decoded positions, cut where a picture's or a video's begin or end."""
        shown = [k if k.medium else Kind(TEXT) for k in self.kinds]
        for kind, start, stop in runs(shown):
            yield kind, list(range(start, stop))

    def layer(self, number: int) -> str:
        """The label of a layer: its 0-based block, or `embed`."""
        point = self.points[number]
        match = _BLOCK.fullmatch(point)
        return match[1] if match else EMBED if point == "hook_merged" else point

    @property
    def of_layers(self) -> str:
        """What the layers are."""
        kinds = {m[2]: None for p in self.points if (m := _BLOCK.fullmatch(p))}
        block = "block" if self.space == "text" else "tower block"
        return f"output of {block}" if list(kinds) == ["hook_resid_post"] else ", ".join(kinds)
