"""Pairs of prompts on tiny models of real families, and patching by plain torch hooks alone."""

from __future__ import annotations

from collections.abc import Sequence

import tiny
from plain_edits import PlainEdit, plain_read, plain_run

from vlm_lens import HookedVLM, LogitDiff
from vlm_lens.prompts.prompt import Prompt

FAMILIES = ("qwen2_vl", "idefics2", "llava-clip")
TOKENS = (17, 29)
MEASURE = LogitDiff(*TOKENS)
Spot = tuple[str, Sequence[tuple[tuple[int, int], tuple[int, int]]], Sequence[int] | None]


def same_shape(vlm: HookedVLM) -> tuple[Prompt, Prompt]:
    """Another picture of the same size, and one word replaced by one of as many tokens."""
    return tuple(
        vlm.prompt(f"Q:<image>{word}\nA:", [tiny.noise_picture(seed, (32, 48))])
        for seed, word in enumerate(("Peru", "Lima"))
    )


def other_lengths(vlm: HookedVLM) -> tuple[Prompt, Prompt]:
    """Another picture at another place, between texts of other lengths."""
    return tuple(
        vlm.prompt(text, [tiny.noise_picture(seed, (32, 48))])
        for seed, text in enumerate(("Q:<image>Peru\nA:", "What is the colour <image>Peru\nA:"))
    )


def difference(logits) -> float:
    """The measure, of logits `[pos, d_vocab]`."""
    return float(logits[-1, TOKENS[0]] - logits[-1, TOKENS[1]])


def by_hooks(vlm: HookedVLM, base: Prompt, source: Prompt, spots: Sequence[Spot]) -> float:
    """The measure of one hooked forward of `base`, some cells of which hold what `source` has.

    Args:
        vlm: The model, of which the Hugging Face model and the table of points are used.
        base: The prompt that runs.
        source: The prompt that gives.
        spots: Point, pairs (cell of base, cell of source), heads.
    """
    edits = []
    for name, cells, heads in spots:
        point = vlm.points()[name]
        read = plain_read(vlm.hf_model, source.inputs, point)
        values = [read[row, position] for _, (row, position) in cells]
        if heads is not None:
            values = [value[list(heads)] for value in values]
        here = [cell for cell, _ in cells]
        edits.append(PlainEdit(point, here, "set", values, heads=heads and list(heads)))
    return difference(plain_run(vlm.hf_model, base.inputs, edits))
