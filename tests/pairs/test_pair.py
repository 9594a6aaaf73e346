"""One pair: what makes one, what it says, and that it patches what `patching.patch` does."""

from __future__ import annotations

import pytest
import tiny
from induction_case import model
from patching.pairs_of_prompts import other_lengths, same_shape

from pairs.pairs_of_cells import cell_pair
from vlm_lens import AnyOf, HookedVLM, Images, Last, LogitDiff, LogProb, Text, VLMLensError
from vlm_lens.errors import PositionError
from vlm_lens.measures import MeasureError
from vlm_lens.pairs import Pair, PairError
from vlm_lens.patching import patch, patch_paths

Z = "blocks.*.attn.hook_z"


def test_it_patches_by_its_own_measure(clip):
    clean, corrupt = other_lengths(clip)
    pair = Pair(clean, corrupt, 17, 29)
    at = [Images(), Text(), Last()]
    found = pair.patch(clip, Z, heads="each", at=at, progress=False)
    expected = patch(clip, clean, corrupt, Z, heads="each", at=at, measure=LogitDiff(17, 29))
    assert found.values.identical(expected.values)
    other = pair.patch(clip, Z, at=at, measure=LogProb(17), direction="noise", progress=False)
    expected = patch(clip, clean, corrupt, Z, at=at, measure=LogProb(17), direction="noise")
    assert other.values.identical(expected.values) and other.name == "lost share"


def test_paths_are_those_of_its_own_measure(clip):
    clean, corrupt = same_shape(clip)
    options = {"senders": Z, "receivers": ["logits", "blocks.1.attn.hook_v"], "freeze": "all",
               "heads": [1]}  # fmt: skip
    found = Pair(clean, corrupt, 17, 29).patch_paths(
        clip, options.pop("senders"), at=lambda pair: Last(), progress=False, **options
    )
    expected = patch_paths(
        clip, clean, corrupt, senders=Z, at=Last(), measure=LogitDiff(17, 29), **options
    )
    assert found.values.identical(expected.values)


def test_places_may_be_a_function_of_the_pair():
    pair = cell_pair("b3")
    found = pair.patch(
        model(), "hook_merged", progress=False,
        at=lambda p: {"object": p.changed, "others": Images() - p.changed},
    )  # fmt: skip
    assert found.values.to_numpy() == pytest.approx([1, 0], abs=1e-5)


def test_flipped_gives_the_same_shares_the_other_way():
    pair = cell_pair("c2")
    there = pair.patch(model(), Z, heads="each", at=Last(), progress=False)
    back = pair.flipped().patch(model(), Z, heads="each", at=Last(), direction="noise",
                                progress=False)  # fmt: skip
    assert back.values.to_numpy() == pytest.approx(there.values.to_numpy(), abs=1e-5)
    assert (back.about["clean"], back.about["corrupt"]) == pytest.approx(
        (-there.about["corrupt"], -there.about["clean"]), abs=1e-3
    )
    with pytest.raises(PairError, match="no answer of its own"):
        Pair(pair.clean, pair.corrupt, pair.answer).flipped()


def test_answers_are_told_apart_by_their_first_token(clip):
    clean, corrupt = same_shape(clip)
    with pytest.raises(PairError, match="nothing tells them apart"):
        Pair(clean, corrupt, "Lima", "Lima")
    same_start = Pair(clean, corrupt, "Athens Athens", "Athens")
    for use in (
        lambda: same_start.check(clip),
        lambda: same_start.patch(clip, Z, progress=False),
    ):
        with pytest.raises(MeasureError, match="both begin with the token"):
            use()
    clean, corrupt = cell_pair("b3").clean, cell_pair("b3").corrupt
    Pair(clean, corrupt, " red", "red").check(model())  # two words to this tokenizer
    either = Pair(clean, corrupt, AnyOf(" red", "red"), AnyOf(" blue", "blue"))
    assert either.check(model()) is either
    with pytest.raises(MeasureError, match="both begin with the token"):
        Pair(clean, corrupt, AnyOf(" red", "red"), "red").check(model())


def test_what_is_no_pair_is_refused(clip, load):
    clean, corrupt = same_shape(clip)
    batch = clip.prompt(["Q:Greece\nA:", "Q:Peru\nA:"])
    other_model = load("clip-qwen2").prompt("Q:Peru\nA:")
    for wrong, match in (
        (("Q:Peru", corrupt), "make it for a model first"),
        ((clean, batch), "a batch of 2 rows"),
        ((clip.prompt("Q:Peru\nA:"), other_model), "different models"),
        ((clean, clip.prompt("Q:Peru\nA:")), "equally many pictures"),
    ):
        with pytest.raises(VLMLensError, match=match):
            Pair(*wrong, "a", "b")


def test_where_prompts_differ(clip):
    clean, corrupt = same_shape(clip)
    changed = Pair(clean, corrupt, 1, 2).changed
    words = {(0, clean.layout.span("Peru")[0]), (0, clean.layout.span("Peru")[-1])}
    patches = set(Images().resolve(clean.layout))  # noise differs everywhere
    assert set(changed.resolve(clean.layout)) == words | patches
    for space in ("vision", "projector"):
        everywhere = {(g.row, p) for g in clean.layout.image[0].space(space).grids
                      for p in g.positions}  # fmt: skip
        assert set(changed.resolve(clean.layout, space)) == everywhere
    with pytest.raises(PositionError, match="equal at every position"):
        _ = Pair(clean, clean, 1, 2).changed
    one = cell_pair("b3")
    layout = one.clean.layout
    assert one.changed.resolve(layout) == [(0, layout.image[0].patch(2, 1))]
    assert one.changed.resolve(layout, "vision") == [(0, 10)]  # after the class token


def test_it_prints_and_shows_both_prompts():
    pair = cell_pair("b3")
    assert repr(pair).splitlines() == [
        f"Pair({pair.answer!r} against {pair.other!r}, b3)",
        "  clean    '<s>Q:<image 0>b3\\nA:'",
        "  corrupt  '<s>Q:<image 0>b3\\nA:'",
        "  picture 0 differs",
    ]
    html = pair._repr_html_()
    assert html.count("<svg") == 2 and "clean" in html and "corrupt" in html


def test_pictures_of_two_sizes_are_refused_with_the_fix(tmp_path):
    from families.every import VLMS

    qwen: HookedVLM = VLMS["qwen2_vl"].load(tmp_path)
    pictures = [tiny.noise_picture(i, size) for i, size in enumerate([(32, 48), (64, 16)])]
    prompts = [qwen.prompt("Q:<image>A:", [p]) for p in pictures]
    with pytest.raises(PositionError, match="resize both pictures to the same width and height"):
        Pair(*prompts, 1, 2)
    resized = [qwen.prompt("Q:<image>A:", [p.resize((32, 32))]) for p in pictures]
    found = Pair(*resized, 17, 29).patch(qwen, "hook_merged", at=[Images(), Last()], progress=False)
    assert found.values.to_numpy() == pytest.approx([1, 0], abs=1e-3)
