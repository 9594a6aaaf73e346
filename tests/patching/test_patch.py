"""Axes of patching: blocks, heads, windows, places; and what is known of toy-induction."""

from __future__ import annotations

import numpy as np
import pytest
from induction_case import HERE, THERE, asked, model

from patching.pairs_of_prompts import MEASURE, other_lengths, same_shape
from vlm_lens import Find, HookedVLM, Images, Last, LogitDiff, Patches, Scores, Text, VLMLensError
from vlm_lens.layout.position_map import position_map
from vlm_lens.patching import Each, Spot, patch, patch_spots
from vlm_lens.zoo.induction import ANSWER

Z = "blocks.*.attn.hook_z"


@pytest.fixture
def induction() -> HookedVLM:
    return model()


def test_axes_are_those_asked_and_cells_those_of_single_spots(clip):
    clean, corrupt = same_shape(clip)
    at = {"picture": Images(), "text": Text(), "last": Last()}
    found = patch(clip, clean, corrupt, Z, heads="each", at=at, measure=MEASURE)
    n_layers, n_heads = clip.cfg.n_layers, clip.cfg.n_heads
    assert found.axes == ("layer", "head", "kind")
    assert found.shape == (n_layers, n_heads, 3)
    assert found.values["kind"].to_numpy().tolist() == ["picture", "text", "last"]
    spots = [
        Spot(f"blocks.{layer}.attn.hook_z", place, (head,))
        for layer in range(n_layers)
        for head in range(n_heads)
        for place in at.values()
    ]
    each = patch_spots(clip, clean, corrupt, spots, measure=MEASURE)
    assert found.values.to_numpy().flatten() == pytest.approx(each.share, abs=1e-5)
    assert (found.name, found.about["clean"]) == ("recovered share", each.clean)
    assert found.layout == clean.layout and len(found.pictures) == 1


def test_axes_of_one_are_left_out(clip):
    clean, corrupt = same_shape(clip)
    single = patch(clip, clean, corrupt, "blocks.1.hook_resid_post", at=Last(), measure=MEASURE)
    assert single.axes == () and single.about["at"] == "Last()"
    heads = patch(clip, clean, corrupt, ("z", 1), at=Last(), heads=[2, 0], measure=MEASURE)
    assert heads.axes == ("head",) and heads.values["head"].to_numpy().tolist() == [2, 0]
    places = patch(clip, clean, corrupt, "hook_merged", at=[Images(), Last()], measure=MEASURE)
    assert places.values["kind"].to_numpy().tolist() == ["Images()", "Last()"]
    whole = patch(clip, clean, corrupt, "hook_merged", measure=MEASURE)
    assert float(whole.values) == pytest.approx(1, abs=1e-4)


def test_windows_of_blocks(clip):
    clean, corrupt = same_shape(clip)
    name, at = "blocks.*.hook_mlp_out", Images()
    found = patch(clip, clean, corrupt, name, at=[at, Last()], window=2, measure=MEASURE)
    assert found.axes == ("kind",)  # one window of two blocks
    both = Spot(tuple(f"blocks.{i}.hook_mlp_out" for i in range(2)), at)
    each = patch_spots(clip, clean, corrupt, [both], measure=MEASURE)
    assert float(found.values[0]) == pytest.approx(each.share[0], abs=1e-5)
    assert found.about["window"] == "2 blocks from each"


def test_each_position_that_has_a_counterpart(clip):
    clean, corrupt = other_lengths(clip)
    found = patch(clip, clean, corrupt, "blocks.0.hook_resid_post", at="each", measure=MEASURE)
    known = found.values["position"].to_numpy().tolist()
    assert known == [p for p, _ in position_map(clean.layout, corrupt.layout).text]
    position = clean.layout.image[0].patch(2, 1)
    one = patch_spots(clip, clean, corrupt, [Spot("blocks.0.hook_resid_post", position)],
                      measure=MEASURE)  # fmt: skip
    value = float(found.sel(position=position).values)
    assert value == pytest.approx(one.share[0], abs=1e-5)
    found.over_picture()


def test_tower_positions_know_their_rows(clip):
    clean, corrupt = same_shape(clip)
    found = patch(
        clip, clean, corrupt, "vision.blocks.*.hook_resid_post", at=Each(Images()), measure=MEASURE
    )
    assert found.space == "vision" and found.axes == ("layer", "position")
    assert found.places()[3].patch is not None
    found.over_picture()
    barred = f"vision.blocks.{clip.cfg.vision.n_layers - 1}.hook_resid_post"
    assert found.about["left out"].startswith(barred)  # the projector reads an earlier one
    with pytest.raises(VLMLensError, match="cannot be patched"):
        patch(clip, clean, corrupt, barred, at=Images(), measure=MEASURE)


def test_heads_and_patches_of_toy_induction_are_found_and_no_others(induction):
    clean, corrupt = asked(0), asked(1)
    measure = LogitDiff(HERE, THERE)
    last = patch(induction, clean, corrupt, Z, heads="each", at=Last(), measure=measure)
    expected = np.zeros(last.shape)
    expected[ANSWER] = 1
    assert last.values.to_numpy() == pytest.approx(expected, abs=1e-5)
    patch_of_b3 = clean.layout.image[0].patch(2, 1)
    streams = patch(
        induction, clean, corrupt, "blocks.*.hook_resid_pre", at="each", measure=measure,
        direction="noise",
    )  # fmt: skip
    assert streams.name == "lost share"
    for p in streams.values["position"].to_numpy():
        wanted = float(p == patch_of_b3)
        assert streams.sel(position=p).values.to_numpy() == pytest.approx([wanted] * 3, abs=1e-5)


def test_a_saved_result_is_the_same(induction, tmp_path):
    found = patch(
        induction, asked(0), asked(1), Z, heads="each", at=[Images(), Patches(0, rows=2)],
        measure=LogitDiff(HERE, THERE),
    )  # fmt: skip
    again = Scores.load(found.save(tmp_path / "scores"))
    assert again.values.identical(found.values) and again.about == found.about


def test_what_does_not_fit_is_refused_before_any_run(clip, no_forward):
    clean, corrupt = same_shape(clip)
    no_forward(clip)
    for points, options, match in (
        (["blocks.*.hook_mlp_out", Z], {}, "points of 2 kinds"),
        ("blocks.*.hook_mlp_out", {"heads": "each"}, "no axis of heads"),
        (Z, {"heads": "all"}, "heads is 'each', numbers"),
        (Z, {"heads": [0, 0]}, "each once"),
        (Z, {"heads": [7]}, "has heads 0..3"),
        (Z, {"window": 3}, "1 to 2 blocks"),
        (Z, {"window": 0}, "1 to 2 blocks"),
        (Z, {"at": [Last(), Last()]}, "twice"),
        (Z, {"at": []}, "At"),
        (Z, {"at": Find("xyz")}, "does not occur"),
    ):
        with pytest.raises(VLMLensError, match=match):
            patch(clip, clean, corrupt, points, measure=MEASURE, **options)
