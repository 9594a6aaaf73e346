"""Many pairs: means, controls, folders."""

from __future__ import annotations

import numpy as np
import pytest
from induction_case import NAMES, drawn, full, model

from pairs.pairs_of_cells import cell_pair, cell_pairs
from vlm_lens import Images, Last, LogitDiff, Text, VLMLensError
from vlm_lens.pairs import Each, Pair, PairError, Pairs, PairScores
from vlm_lens.patching import NoDifference, Receiver
from vlm_lens.zoo.induction import ANSWER

Z = "blocks.*.attn.hook_z"
AT = [Images(), Text(), Last()]


def test_each_pair_is_patched_as_it_is_alone():
    pairs = cell_pairs()
    found = pairs.patch(model(), Z, heads="each", at=AT, progress=False)
    assert found.axes == ("pair", "layer", "head", "kind")
    for i in (0, 3):
        alone = pairs[i].patch(model(), Z, heads="each", at=AT, progress=False)
        assert found.sel(pair=i).values.to_numpy() == pytest.approx(
            alone.values.to_numpy(), abs=1e-5
        )


def test_the_head_of_toy_induction_and_no_other_is_found():
    found = cell_pairs().patch(model(), Z, heads="each", at=Last(), progress=False)
    expected = np.zeros((3, 3))
    expected[ANSWER] = 1
    assert found.mean("pair").values.to_numpy() == pytest.approx(expected, abs=1e-5)
    table = found.statistics()
    best, rest = table.iloc[0], table.iloc[1:]
    assert (best["layer"], best["head"]) == ANSWER and best["p"] == 2 / 2**6
    assert (rest["p"] == 1).all()  # what is rounding is no effect


def test_random_patches_recover_nothing():
    def at(pair):
        changed = pair.changed
        others = (Images() - changed).resolve(pair.clean.layout)
        drawn = np.random.default_rng(0).choice([p for _, p in others], 1).tolist()
        return {"object": changed, "random patch": drawn}

    found = cell_pairs().patch(model(), "blocks.*.hook_resid_pre", at=at, progress=False)
    means = found.mean("pair")
    assert means.sel(kind="object").values.to_numpy() == pytest.approx([1] * 3, abs=1e-5)
    assert means.sel(kind="random patch").values.to_numpy() == pytest.approx([0] * 3, abs=1e-5)


def test_permuted_answers_have_nothing_to_find():
    pairs = cell_pairs().permuted(1)
    assert all(
        not {p.answer, p.other} & {q.answer, q.other}
        for p, q in zip(pairs, cell_pairs(), strict=True)
    )
    with pytest.raises(NoDifference, match="each of these 6 pairs"):
        pairs.patch(model(), Z, at=Last(), progress=False)
    with pytest.raises(PairError, match="answers none"):
        pairs.solved(model())
    with pytest.raises(PairError, match="more different answers"):
        Pairs((cell_pair("a1"),)).permuted()


def test_solved_pairs_are_those_that_the_model_answers():
    good, colors = cell_pairs()[:2], full(0)
    # the question is about another cell than the one that changes
    wrong = Pair(*(model().prompt("Q:<image>b3\nA:", [drawn(c)]) for c in (
        colors, {**colors, "a1": "green"})), "red", "green")  # fmt: skip
    mixed = Pairs((*good, wrong, good[0].flipped()))
    assert mixed.solved(model()).pairs == (*good, mixed[3])
    clean, corrupt = mixed.measured(model())
    assert clean[0] > 0 > corrupt[0] and clean[2] == pytest.approx(corrupt[2])


def test_pairs_without_a_difference_are_left_out_and_said():
    one = cell_pairs()[0]
    mixed = Pairs((one, Pair(one.clean, one.clean, "red", "blue"), cell_pairs()[1]))
    found = mixed.patch(model(), Z, heads="each", at=Last(), progress=False)
    assert found.about["pairs without a difference, left out"] == [1]
    assert np.isnan(found.sel(pair=1).values.to_numpy()).all()
    assert found.statistics()["pairs"].unique().tolist() == [2]
    assert found.mean("pair").sel(layer=2, head=2).values == pytest.approx(1, abs=1e-5)


def test_single_positions_over_prompts_of_one_shape():
    pairs = cell_pairs(3)
    found = pairs.patch(model(), "hook_merged", at=Each(Images()), progress=False)
    assert found.axes == ("pair", "position")
    for i, name in enumerate(NAMES[:3]):
        row = found.sel(pair=i).top(1).iloc[0]
        assert row["patch"] == (int(name[1]) - 1, "abcd".index(name[0]))
    found.over_picture()
    longer = Pair(*(model().prompt(f"Q:red\nA:{c}\n\nQ:red\nA:") for c in ("red", "blue")),
                  "red", "blue")  # fmt: skip
    text = Pairs((longer, Pair(*(model().prompt(f"Q:a\nA:\nQ:a\nA:{c}\n\nQ:a\nA:") for c in (
        "red", "blue")), "red", "blue")))  # fmt: skip
    with pytest.raises(PairError, match="Pair 1 has other places than pair 0"):
        text.patch(model(), Z, at="each", progress=False)


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    pairs = cell_pairs(4)
    options = {"heads": "each", "at": Last(), "progress": False}
    plain = pairs.patch(model(), Z, **options)
    sweep, done = "vlm_lens.patching.parts.sweep", []

    def killed(*args, **more):
        done.append(args)
        if len(done) > 2:
            raise KeyboardInterrupt
        return real(*args, **more)

    from vlm_lens.patching.parts import sweep as real

    with monkeypatch.context() as patched:
        patched.setattr(sweep, killed)
        with pytest.raises(KeyboardInterrupt):
            pairs.patch(model(), Z, save=tmp_path / "run", memory=1, **options)
    kept = sorted(p.name for p in (tmp_path / "run").glob("pair-*"))
    again = pairs.patch(model(), Z, save=tmp_path / "run", memory=1, **options)
    assert again.values.to_numpy() == pytest.approx(plain.values.to_numpy(), abs=1e-6)
    assert 0 < len(kept) < 4
    monkeypatch.setattr(sweep, None)
    third = pairs.patch(model(), Z, save=tmp_path / "run", memory=1, **options)
    assert third.values.identical(again.values)
    with pytest.raises(VLMLensError, match="another asked"):
        pairs.patch(model(), Z, save=tmp_path / "run", direction="noise", **options)


def text_pairs() -> Pairs:
    """`x y z q x` goes on with y, and `z y x q x` with q, whichever words they are."""
    words = ("x y z q", "a b c d", "b d a x", "q c y z")
    made = []
    for one in words:
        x, y, z, q = one.split()
        texts = (f"{x} {y} {z} {q} {x}", f"{z} {y} {x} {q} {x}")
        made.append(Pair(*map(model().prompt, texts), f" {y}", f" {q}"))
    return Pairs(tuple(made), "texts")


PATHS = {
    "receivers": [*(Receiver(f"blocks.2.attn.hook_{kind}", 0) for kind in "qkv"), "logits"],
    "freeze": "attention", "heads": "each", "progress": False,
}  # fmt: skip


def test_the_paths_of_toy_induction_and_no_others_are_found():
    pairs = text_pairs()
    found = pairs.patch_paths(model(), Z, **PATHS)
    assert found.axes == ("pair", "layer", "head", "receiver")
    for i in (0, 3):
        alone = pairs[i].patch_paths(model(), Z, **PATHS)
        assert found.sel(pair=i).values.to_numpy() == pytest.approx(
            alone.values.to_numpy(), abs=1e-5, nan_ok=True
        )
    table = found.statistics()
    ways = {(row["layer"], row["head"], row["receiver"]) for _, row in table.head(2).iterrows()}
    assert ways == {(1, 0, "blocks.2.attn.hook_k head 0"), (2, 0, "logits")}
    assert table["mean"][:2].to_numpy() == pytest.approx([1, 1], abs=1e-5)
    assert (table["low"][:2] > 0.999).all() and (table["p"][:2] == 2 / 2**4).all()
    assert (table["p"][2:] == 1).all()
    assert len(table) == 9 + 3 * 6  # block 2 sends to no input of block 2


def test_a_killed_run_of_paths_goes_on(tmp_path, monkeypatch):
    pairs, folder = text_pairs(), tmp_path / "run"
    plain = pairs.patch_paths(model(), Z, **PATHS)
    done: list[Pair] = []
    real = Pair.patch_paths

    def killed(pair, *args, **options):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(pair)
        return real(pair, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Pair, "patch_paths", killed)
        with pytest.raises(KeyboardInterrupt):
            pairs.patch_paths(model(), Z, save=folder, **PATHS)
    assert len(list(folder.glob("pair-*"))) == 2
    again = pairs.patch_paths(model(), Z, save=folder, **PATHS)
    assert again.values.identical(plain.values)
    monkeypatch.setattr(Pair, "patch_paths", None)
    assert pairs.patch_paths(model(), Z, save=folder, **PATHS).values.identical(plain.values)
    for options in ({"freeze": "all"}, {"direction": "denoise"}, {"receivers": "logits"}):
        with pytest.raises(PairError, match="another asked"):
            pairs.patch_paths(model(), Z, save=folder, **{**PATHS, **options})
    with pytest.raises(PairError, match="patched paths"):
        pairs.patch(model(), Z, save=folder, progress=False)


def test_paths_that_do_not_fit_are_refused_before_any_run(no_forward):
    no_forward(model())
    for options, match in (
        ({"freeze": "nothing"}, "freeze is"),
        ({"direction": "both"}, "direction"),
        ({"heads": [5]}, "has heads 0..2"),
        ({"receivers": "blocks.0.hook_resid_pre"}, "no receiver's input"),
        ({"measure": LogitDiff(" x", " x")}, "both begin with"),
        ({"at": Images()}, "Pair 0"),
    ):
        with pytest.raises(VLMLensError, match=match):
            text_pairs().patch_paths(model(), Z, **{**PATHS, **options})
    with pytest.raises(VLMLensError, match="no sender"):
        text_pairs().patch_paths(model(), "blocks.*.hook_resid_pre", **{**PATHS, "heads": None})


def test_what_does_not_fit_is_refused_before_any_run(no_forward):
    pairs = cell_pairs(2)
    no_forward(model())
    for options, match in (
        ({"heads": [5]}, "has heads 0..2"),
        ({"at": "last"}, "Pair 0: at is a position"),
        ({"measure": LogitDiff("red", "red")}, "both begin with"),
        ({"direction": "both"}, "direction"),
    ):
        with pytest.raises(VLMLensError, match=match):
            pairs.patch(model(), Z, progress=False, **options)
    for wrong in ((), (pairs[0], "x")):
        with pytest.raises(PairError):
            Pairs(wrong)


def test_they_print_save_and_slice(tmp_path):
    pairs = cell_pairs()
    assert repr(pairs).startswith("6 pairs of cells, seed 0\nPair('red' against 'green', a1)")
    assert "... and 3 more" in repr(pairs) and pairs[:2].pairs == (pairs[0], pairs[1])
    assert pairs[:2]._repr_html_().count("<svg") == 4
    found = pairs.patch(model(), Z, heads="each", at=AT, progress=False)
    assert "p_adjusted" in repr(found) and "seed 0" in repr(found)
    assert found.plot().data
    again = PairScores.load(found.save(tmp_path))
    assert again.values.identical(found.values)
    assert again.statistics().equals(found.statistics())
