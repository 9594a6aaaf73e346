"""Symbolic positions on all three sequences."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from typecheck import unchecked

from vlm_lens.errors import PositionError
from vlm_lens.layout.positions import (
    All,
    At,
    Find,
    Generated,
    Images,
    Last,
    Patches,
    Span,
    Text,
    as_position,
)


@pytest.fixture
def prompt(vlm):
    pictures = [tiny.noise_picture(i, (64, 32)) for i in range(3)]
    return vlm.prompt(["Q:<image>\nA:red\n\nQ:<image>\nA:", "Q:Peru <image>"], pictures)


def test_in_the_text(prompt):
    for row, layout in enumerate(prompt.layouts):
        assert Last().resolve(layout) == [(row, prompt.length - 1)]
        assert Find(":").resolve(layout) == [(row, layout.find(":"))]
        assert Find(":", 0).resolve(layout) == [(row, layout.find(":", 0))]
        assert Span("Q:", 0).resolve(layout) == [(row, p) for p in layout.span("Q:", 0)]
        assert At((-1, -2)).resolve(layout) == [(row, prompt.length - 1), (row, prompt.length - 2)]
        everything = [p for _, p in All().resolve(layout)]
        assert everything == list(range(layout.start, prompt.length))
        text = [p for _, p in Text().resolve(layout)]
        special = [p for _, p in Text(special=True).resolve(layout)]
        pictures = [p for _, p in Images().resolve(layout)]
        assert sorted(special + pictures) == everything
        assert set(special) - set(text) == {layout.start}
        assert Generated().resolve(layout) == []


def test_patches_in_every_space(vlm, prompt):
    first = vlm.cfg.vision.n_class_tokens
    kept = 16
    for layout, numbers in zip(prompt.layouts, ([0, 1], [2]), strict=True):
        for index, number in enumerate(numbers):
            image = layout.image[index]
            cells = [(r, c) for r in (1, 2) for c in (0, 1, 2, 3)]
            at = Patches(index, rows=(1, 3))
            assert at.resolve(layout) == [(layout.row, image.patch(r, c)) for r, c in cells]
            assert at.resolve(layout, "vision") == [(number, first + 4 * r + c) for r, c in cells]
            assert at.resolve(layout, "projector") == [(number, 4 * r + c) for r, c in cells]
            one = Patches(index, rows=-1, cols=0)
            assert one.resolve(layout, "projector") == [(number, 12)]
            box = image.pixels(image.patch(1, 2))
            assert Patches(index, box=box).resolve(layout) == [(layout.row, image.patch(1, 2))]
            assert Patches(index, box=box).resolve(layout, "vision") == [(number, first + 6)]
            whole = [(number, p) for p in range(first + kept)]
            assert Images(index).resolve(layout, "vision") == whole
            assert Images(index).resolve(layout, "projector") == whole[:kept]
            assert Images(index).resolve(layout) == [(layout.row, p) for p in image.positions]
        everything = [(n, p) for n in numbers for p in range(first + kept)]
        assert All().resolve(layout, "vision") == everything
        assert Images().resolve(layout, "vision") == everything
        assert At(0).resolve(layout, "vision") == [(n, 0) for n in numbers]
        assert At(-1).resolve(layout, "projector") == [(n, kept - 1) for n in numbers]


@pytest.mark.parametrize("at", [Last(), Find(":"), Span("Q:", 0), Text(), Generated()])
@pytest.mark.parametrize("space", ["vision", "projector"])
def test_text_is_not_in_the_tower(prompt, at, space):
    with pytest.raises(PositionError, match="picture"):
        at.resolve(prompt.layouts[0], space)


def test_errors(vlm, prompt):
    first, second = prompt.layouts
    for layout, at, message in [
        (second, Patches(1), "1 picture; image 1"),
        (second, Images(1), "1 picture; image 1"),
        (first, Patches(rows=4), "no patch"),
        (first, Patches(rows=(2, 2)), "no range"),
        (first, Patches(box=(100, 100, 120, 120)), "covers nothing"),
        (first, At(400), "not in this prompt"),
        (first, Find("Peru"), "does not occur"),
        (first, Span("Peru"), "does not occur"),
    ]:
        with pytest.raises(PositionError, match=message):
            at.resolve(layout)
    with pytest.raises(PositionError, match="padding"):
        At(0).resolve(second)
    with pytest.raises(PositionError, match="17|16"):
        At(17).resolve(first, "vision")
    text_only = vlm.prompt("Q:Peru").layout
    for at in (Patches(), Images()):
        with pytest.raises(PositionError, match="no picture"):
            at.resolve(text_only)
    for at in (All(), At(0)):
        with pytest.raises(PositionError, match="no picture"):
            at.resolve(text_only, "vision")
    with pytest.raises(PositionError, match="only one"):
        Patches(rows=1, box=(0, 0, 1, 1))


def test_numbers_are_positions():
    assert as_position(3) == At((3,)) == At(3) == At([3])
    assert as_position(range(2)) == At((0, 1))
    assert as_position((1, 2)) == as_position(torch.tensor([1, 2]).tolist()) == At((1, 2))
    assert as_position(Last()) == Last()
    assert len({At([3]), At((3,))}) == 1
    for wrong in (None, "last", "12", 1.5, [None]):
        with pytest.raises(PositionError, match="is not a position: use Last()"):
            unchecked(as_position)(wrong)
    assert unchecked(as_position)(np.array([1, 2])) == At((1, 2))


def test_a_list_of_rows_is_not_a_stretch(clip):
    """`rows=[0, 2]` would read rows 0 and 1 as `(0, 2)` does."""
    for wrong in ([0, 2], (0, 1, 2), 1.5, "0"):
        with pytest.raises(PositionError, match=r"one number or \(start, stop\)"):
            Patches(0, rows=wrong)
    for wrong in ((3, 3, 2, 8), (0, 0), "box", 7):
        with pytest.raises(PositionError, match="box"):
            Patches(0, box=wrong)
    prompt = clip.prompt("<image>A:", [tiny.noise_picture()])
    with pytest.raises(PositionError, match="no patch 4 in a grid of 4"):
        Patches(0, rows=4).resolve(prompt.layout)
