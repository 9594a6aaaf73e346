"""Pairs of which toy-induction knows everything: one cell of a picture has another color."""

from __future__ import annotations

from functools import cache

from induction_case import NAMES, drawn, full, model

from vlm_lens.pairs import Pair, Pairs


def cell_pair(cell: str, shift: int = 0) -> Pair:
    """What stands at a cell? In the corrupt picture, another color, and all else is equal."""
    colors = full(shift)
    other = {**colors, cell: full(shift + 1)[cell]}
    clean, corrupt = (model().prompt(f"Q:<image>{cell}\nA:", [drawn(c)]) for c in (colors, other))
    return Pair(clean, corrupt, colors[cell], other[cell], differs=cell)


@cache
def cell_pairs(n: int = 6) -> Pairs:
    """Several, about different cells."""
    return Pairs(tuple(cell_pair(cell, i) for i, cell in enumerate(NAMES[:n])), "cells", 0)
