"""Counterparts between two prompts, on layouts of real tokenizers and processors."""

from __future__ import annotations

import pytest
import tiny
from families.every import VLMS

from vlm_lens import All, At, HookedVLM, Images, Last, Span, Text
from vlm_lens.errors import PositionError
from vlm_lens.layout.position_map import PositionMap, position_map
from vlm_lens.serial import pack, unpack


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> HookedVLM:
    """A tiny Qwen2-VL: the size of a picture decides how many positions it takes."""
    return VLMS["qwen2_vl"].load(tmp_path_factory.mktemp("qwen2_vl"))


def between(vlm: HookedVLM, clean: str, corrupt: str, pictures: int = 0) -> PositionMap:
    """The map between two texts with the same pictures."""
    shown = [tiny.noise_picture(i) for i in range(pictures)]
    return position_map(*(vlm.prompt(text, shown).layout for text in (clean, corrupt)))


def words(found: PositionMap) -> list[tuple[str, str]]:
    """The tokens that are counterparts."""
    return [(found.clean.strings[a], found.corrupt.strings[b]) for a, b in found.text]


def test_same_shape_is_position_by_position(clip):
    found = between(clip, "Q:<image>Peru\nA:", "Q:<image>Lima\nA:", 1)
    assert len(found.clean) == len(found.corrupt)
    assert found.text == tuple((i, i) for i in range(len(found.clean)))
    assert found.is_whole and found.flipped() == PositionMap(found.corrupt, found.clean, found.text)
    for space in ("text", "vision", "projector"):
        cells = found.cells(space)
        assert list(cells) == All().resolve(found.clean, space)
        assert all(a == b for a, b in cells.items())


def test_texts_of_other_lengths_by_common_tokens(clip):
    found = between(
        clip, "Q:Greece\nA:Athens\n\nQ:Peru\nA:", "Q:Greece\nA:Lima and so on\n\nQ:Peru\nA:"
    )
    assert not found.is_whole
    assert (found.clean.last, found.corrupt.last) == found.text[-1]
    assert found.resolve(Last()) == {(0, found.clean.last): (0, found.corrupt.last)}
    same = [(a, b) for a, b in words(found) if a == b]
    assert len(same) >= len(found.text) - 2
    ordered = [b for _, b in found.text]
    assert ordered == sorted(set(ordered))
    counted = len(found.resolve(All())) + len(found.lost(All()))
    assert counted == len(found.clean)


def test_a_replaced_stretch_of_other_length_corresponds_at_its_end(clip):
    found = between(clip, "What is the capital of Zzxq now", "What is the capital of Peru now")
    long, short = (layout.span(w) for layout, w in
                   ((found.clean, "Zzxq"), (found.corrupt, "Peru")))  # fmt: skip
    assert len(long) > 1 and len(short) != len(long)
    assert found.resolve(Span("Zzxq")) == {(0, long[-1]): (0, short[-1])}
    assert found.lost(Span("Zzxq")) == [(0, p) for p in long[:-1]]
    with pytest.raises(PositionError, match="has a counterpart"):
        found.resolve(At(long[0]))
    assert "without counterpart" in repr(found)


def test_pictures_at_other_places_correspond_patch_by_patch(clip):
    found = between(clip, "Q:<image>red<image>\nA:", "What is the red <image>or<image>\nA:", 2)
    cells = found.resolve(Images())
    assert list(cells) == Images().resolve(found.clean)
    assert list(cells.values()) == Images().resolve(found.corrupt)
    for k in (0, 1):
        ours, theirs = found.clean.image[k], found.corrupt.image[k]
        assert cells[0, ours.patch(1, 2)] == (0, theirs.patch(1, 2))
    back = found.flipped()
    assert {b: a for a, b in found.cells().items()} == back.cells()
    assert back.resolve(Text()).keys() <= {(0, p) for p, _ in back.text}


def test_pictures_of_two_sizes_are_refused_with_the_fix(qwen):
    one, wide, tall = (tiny.noise_picture(size=size) for size in ((32, 32), (64, 16), (16, 64)))
    text = "Q:<image>A:"
    square, flat, high = (qwen.prompt(text, [p]).layout for p in (one, wide, tall))
    with pytest.raises(PositionError, match="resize both pictures to the same width and height"):
        position_map(square, flat)
    assert len(flat) == len(high)  # as many positions, and yet other places of the picture
    with pytest.raises(PositionError, match="patches in the language model in the clean prompt"):
        position_map(flat, high)


def test_pictures_of_one_size_correspond_in_every_space(qwen):
    clean, corrupt = (
        qwen.prompt(text, [tiny.noise_picture(seed, (32, 48))]).layout
        for text, seed in (("Q:<image>A:", 0), ("What is the capital of <image>A:", 1))
    )
    found = position_map(clean, corrupt)
    for space in ("text", "vision", "projector"):
        cells, one, two = found.cells(space), clean.image[0], corrupt.image[0]
        grids = [image.space(space).grid() for image in (one, two)]
        for mine, theirs in zip(*(g.positions for g in grids), strict=True):
            assert cells[grids[0].row, mine] == (grids[1].row, theirs)


def test_other_pictures_are_refused(clip):
    with pytest.raises(PositionError, match="equally many pictures"):
        position_map(
            clip.prompt("Q:<image>A:", [tiny.noise_picture()]).layout, clip.prompt("Q:A:").layout
        )


def test_padding_has_no_counterpart(clip):
    both = clip.prompt(["Q:Greece is the capital\nA:", "Q:Peru\nA:"])
    padded = both.layouts[1]
    alone = clip.prompt("Q:Peru\nA:").layout
    found = position_map(alone, padded)
    assert padded.start > 0
    assert found.text == tuple((i, i + padded.start) for i in range(len(alone)))
    assert found.is_whole
    assert found.cells() == {(0, i): (1, i + padded.start) for i in range(len(alone))}


def test_it_is_saved(clip):
    found = between(clip, "Q:<image>\nA:", "What<image>\nA:", 1)
    tensors: dict = {}
    assert unpack(pack(found, tensors), tensors) == found
