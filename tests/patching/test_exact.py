"""Patching against one plain hooked forward for each place."""

from __future__ import annotations

import pytest
import tiny
from families.every import VLMS
from plain_edits import plain_run

from patching.pairs_of_prompts import (
    FAMILIES,
    MEASURE,
    by_hooks,
    difference,
    other_lengths,
    same_shape,
)
from vlm_lens import KL, All, At, HookedVLM, Images, Last, LogitDiff, Span, Text, VLMLensError
from vlm_lens.layout.position_map import position_map
from vlm_lens.measures import Logits
from vlm_lens.patching import PatchingError, Spot, patch_spots
from vlm_lens.patching.parts import check_apart

SPOTS = (
    Spot("blocks.0.attn.hook_z", Images(), (1,)),
    Spot("blocks.1.attn.hook_z", Text(), (0, 2)),
    Spot("blocks.1.attn.hook_z", Last(), (3,)),
    Spot("blocks.0.attn.hook_k", Images(), (1,)),
    Spot("blocks.1.attn.hook_v", All(), (0,)),
    Spot("blocks.0.hook_resid_post", Span("Peru")),
    Spot(("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"), Images()),
    Spot("blocks.1.hook_resid_post", All()),
    Spot("hook_merged", Images()),
    Spot("vision.blocks.0.attn.hook_z", Images(), (1,)),
    Spot("vision.blocks.1.hook_resid_post", Images()),
    Spot("projector.hook_out", Images()),
)


@pytest.fixture(scope="module", params=FAMILIES)
def vlm(request, tmp_path_factory) -> HookedVLM:
    return VLMS[request.param].load(tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("direction", ("denoise", "noise"))
@pytest.mark.parametrize("prompts", (same_shape, other_lengths))
def test_each_spot_equals_a_hooked_forward(vlm, prompts, direction):
    clean, corrupt = prompts(vlm)
    found = patch_spots(vlm, clean, corrupt, SPOTS, measure=MEASURE, direction=direction)
    ends = [difference(plain_run(vlm.hf_model, p.inputs, ())) for p in (clean, corrupt)]
    assert (found.clean, found.corrupt) == pytest.approx(ends, abs=1e-4)
    cells = position_map(clean.layout, corrupt.layout)
    denoise = direction == "denoise"
    base, source = (corrupt, clean) if denoise else (clean, corrupt)
    moved = 0.0
    for spot, value, share in zip(SPOTS, found.values, found.share, strict=True):
        space = vlm.points()[spot.points[0]].space
        both = [(b, a) if denoise else (a, b) for a, b in cells.resolve(spot.at, space).items()]
        expected = by_hooks(vlm, base, source, [(n, both, spot.heads) for n in spot.points])
        assert value == pytest.approx(expected, abs=1e-4), spot
        gap = ends[0] - ends[1]
        wanted = (expected - ends[1]) / gap if denoise else (ends[0] - expected) / gap
        assert share == pytest.approx(wanted, abs=1e-4 / abs(gap) * 3), spot
        moved += abs(wanted)
    assert moved > 0.1
    assert found.engines.keys() == {"replay"} or vlm.family.packs_pictures(vlm.hf_model.config)


def test_spots_that_are_patched_together(vlm):
    clean, corrupt = same_shape(vlm)
    together = [SPOTS[0], SPOTS[2], SPOTS[9]]
    found = patch_spots(vlm, clean, corrupt, [together, *together], measure=MEASURE)
    cells = position_map(clean.layout, corrupt.layout)
    parts = []
    for spot in together:
        both = cells.resolve(spot.at, vlm.points()[spot.points[0]].space)
        parts.append((spot.points[0], [(b, a) for a, b in both.items()], spot.heads))
    assert found.values[0] == pytest.approx(by_hooks(vlm, corrupt, clean, parts), abs=1e-4)


def test_everything_patched_is_the_other_run(vlm):
    clean, corrupt = same_shape(vlm)
    whole = [Spot("hook_merged", All()), Spot("blocks.1.hook_resid_post", All())]
    if vlm.points().match("hook_merged") and vlm.cfg.family == "qwen2_vl":
        assert clean.inputs["image_grid_thw"].equal(corrupt.inputs["image_grid_thw"])
    found = patch_spots(vlm, clean, corrupt, whole, measure=MEASURE)
    assert found.share == pytest.approx([1.0, 1.0], abs=1e-3)
    back = patch_spots(vlm, clean, corrupt, whole, measure=MEASURE, direction="noise")
    assert back.share == pytest.approx([1.0, 1.0], abs=1e-3)
    assert (back.clean, back.corrupt) == pytest.approx((found.clean, found.corrupt), abs=1e-4)


def test_patterns_between_prompts_of_one_length(clip):
    clean, corrupt = same_shape(clip)
    name = "blocks.1.attn.hook_pattern"
    found = patch_spots(clip, clean, corrupt, [Spot(name, Last(), (1,))], measure=MEASURE)
    _, cache = clip.run_with_cache(clean, names_filter=[name])

    def put(pattern, hook):
        pattern[:, 1, -1] = cache[name][:, 1, -1]

    logits = clip.run_with_hooks(corrupt, fwd_hooks=[(name, put)])
    assert found.values[0] == pytest.approx(difference(logits[0]), abs=1e-4)
    with pytest.raises(PatchingError, match="of the same length only"):
        patch_spots(clip, *other_lengths(clip), [Spot(name, Last())], measure=MEASURE)


def test_positions_without_a_counterpart_are_counted(clip):
    clean, corrupt = (clip.prompt(f"What is {x} now") for x in ("Zzxq", "Peru"))
    found = patch_spots(
        clip, clean, corrupt, [Spot("blocks.0.hook_resid_post", Span("Zzxq"))], measure=MEASURE
    )
    assert found.lost == (len(clean.layout.span("Zzxq")) - 1,)
    ends = clean.layout.span("Zzxq")[-1], corrupt.layout.span("Peru")[-1]
    cells = [((0, ends[1]), (0, ends[0]))]
    expected = by_hooks(clip, corrupt, clean, [("blocks.0.hook_resid_post", cells, None)])
    assert found.values[0] == pytest.approx(expected, abs=1e-4)


def test_memory_and_engine_change_nothing(clip):
    clean, corrupt = same_shape(clip)
    plain = patch_spots(clip, clean, corrupt, SPOTS, measure=MEASURE)
    for options in ({"memory": 1}, {"engine": "full"}):
        other = patch_spots(clip, clean, corrupt, SPOTS, measure=MEASURE, **options)
        assert other.values == pytest.approx(plain.values, abs=1e-4)
    assert other.engines == {"full": len(SPOTS)}


def test_other_measures(clip):
    clean, corrupt = same_shape(clip)
    spot = [Spot("blocks.0.hook_resid_post", Images())]
    logits = clip.run(clean)[0, -1]
    found = patch_spots(clip, clean, corrupt, spot, measure=KL(to=logits))
    assert found.clean == pytest.approx(0, abs=1e-5) and found.corrupt > 1e-4
    for measure, match in (
        (KL(), "no difference to share out"),
        (LogitDiff(*reversed((17, 17))), "both begin with the token"),
        (Logits(), "must be a number"),
    ):
        with pytest.raises(VLMLensError, match=match):
            patch_spots(clip, clean, corrupt, spot, measure=measure)


def test_what_does_not_fit_is_refused_before_any_run(clip, no_forward):
    clean, corrupt = same_shape(clip)
    no_forward(clip)
    for spots, match in (
        ([], "nothing to patch"),
        ([Spot("blocks.9.hook_resid_post", Last())], "no point"),
        ([Spot("blocks.0.hook_resid_post", Last(), (0,))], "no axis of heads"),
        ([Spot("blocks.0.attn.hook_z", Last(), (9,))], "has heads 0..3"),
        ([Spot(("blocks.0.hook_resid_post", "projector.hook_out"), Images())], "of one space"),
        ([Spot("blocks.0.hook_resid_post", At(500))], "not in this prompt"),
    ):
        with pytest.raises(VLMLensError, match=match):
            patch_spots(clip, clean, corrupt, spots, measure=MEASURE)
    with pytest.raises(PatchingError, match="direction"):
        patch_spots(clip, clean, corrupt, SPOTS, measure=MEASURE, direction="up")


def test_two_prompts_that_give_the_same_are_refused_before_the_sweep(clip, monkeypatch):
    clean, _ = same_shape(clip)
    monkeypatch.setattr("vlm_lens.sweep.runner.replay", None)  # no variant is run
    with pytest.raises(PatchingError, match="no difference to share out"):
        patch_spots(clip, clean, clean, SPOTS, measure=MEASURE)


def test_a_small_difference_is_said(recwarn):
    check_apart(1.0, 0.9)
    check_apart(0.5, -0.5)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="19.51 for the one prompt and 19.62 .* say little"):
        check_apart(19.51, 19.62)


def test_a_killed_sweep_goes_on(clip, tmp_path, monkeypatch):
    clean, corrupt = same_shape(clip)
    plain = patch_spots(clip, clean, corrupt, SPOTS, measure=MEASURE)
    options = {"measure": MEASURE, "memory": 1, "save": tmp_path / "run"}
    first = patch_spots(clip, clean, corrupt, SPOTS, **options)
    monkeypatch.setattr("vlm_lens.sweep.runner.replay", None)
    again = patch_spots(clip, clean, corrupt, SPOTS, **options)
    assert again.values.tolist() == first.values.tolist()
    assert first.values == pytest.approx(plain.values, abs=1e-4)
    assert (again.clean, again.corrupt) == (first.clean, first.corrupt)
    with pytest.raises(VLMLensError, match="another prompt and variants"):
        patch_spots(clip, clean, corrupt, SPOTS, direction="noise", **options)


def test_nothing_stays_on_the_model(clip):
    before = tiny.hook_state(clip.hf_model)
    patch_spots(clip, *same_shape(clip), SPOTS, measure=MEASURE)
    assert tiny.hook_state(clip.hf_model) == before
