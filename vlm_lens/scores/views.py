"""Scores by position as a view: over the pictures, and over the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vlm_lens.layout.layout import Layout
from vlm_lens.scores.places import Place, grids
from vlm_lens.scores.refusal import ScoresError

if TYPE_CHECKING:
    from vlm_lens.figures.picture_view import PictureView


def view_of(
    values: np.ndarray,
    sliders: Mapping[str, Sequence[str]],
    places: Sequence[Place],
    layout: Layout,
    space: str,
    pictures: Sequence[Image.Image] | None,
    *,
    marked: Set[int],
    name: str,
    subtitle: str,
) -> PictureView:
    """A view of numbers by place.

    Args:
        values: The numbers, the places along the last axis.
        sliders: Other axes that have several entries -> what these are called.
        places: What stands at each place.
        layout: The prompt's.
        space: Whose positions they are.
        pictures: The pictures; `None` for tokens alone.
        marked: Positions that are marked.
        name: What the numbers are.
        subtitle: What is shown of them.

    Raises:
        ScoresError: Pictures are asked, and no place is a patch of one.
    """
    from vlm_lens.figures.picture_view import PictureView
    from vlm_lens.figures.view_parts import Cell, Token

    if pictures is not None and not any(p.patch for p in places):
        reason = next((image.space(space).why_no_grid for image in layout.images), "")
        raise ScoresError(
            "No position of these scores is a patch of a picture"
            + (f": {reason}." if reason else ".")
            + (" The prompt has no picture." if not layout.images else "")
        )
    index = {(p.row, p.position): i for i, p in enumerate(places)}
    shown = [] if pictures is None else list(grids(layout, space))
    cells = tuple(
        Cell(of.image, of.number, divmod(i, of.grid.cols), index[of.grid.row, position])
        for of in shown
        for i, position in enumerate(of.grid.positions)
        if (of.grid.row, position) in index
    )
    strings = layout.strings or tuple(f"#{token}" for token in layout.token_ids)
    tokens = tuple(
        Token(string, kind, index.get((layout.row, i)), i)
        for i, (string, kind) in enumerate(zip(strings, layout.kinds, strict=True))
    )
    return PictureView(
        values=values.reshape(*(len(labels) for labels in sliders.values()), len(places)),
        sliders=sliders,
        cells=cells,
        tokens=tokens if space == "text" else (),
        grids={(of.image, of.number): of.grid for of in shown},
        pictures=tuple(pictures or ()),
        labels=tuple(f"position {p.position}, {p.label}" for p in places),
        marked=tuple(i for i, p in enumerate(places) if p.position in marked),
        name=name,
        subtitle=subtitle,
    )
