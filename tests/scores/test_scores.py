from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from families import tiny_llava_next, tiny_qwen2_vl
from PIL import Image
from storage.kills import at_every_operation

from vlm_lens import Find, HookedVLM, Patches, VLMLensError
from vlm_lens.scores import Scores
from vlm_lens.scores.scores import scores


@pytest.fixture(scope="module")
def prompts(tmp_path_factory, load):
    """Prompts of a crop, of tiles, and of merged patches, with the model that reads them."""
    found = {"crop": load("clip-llama")}
    for name, family in (("tiles", tiny_llava_next), ("merge", tiny_qwen2_vl)):
        folder = tmp_path_factory.mktemp(name)
        family.save(folder=folder)
        found[name] = HookedVLM.from_pretrained(folder)
    pictures = [Image.effect_noise((40, 30), 80).convert("RGB"), Image.new("RGB", (33, 60), "red")]
    return {
        name: (vlm, vlm.prompt("<image> and <image>\nA:", images=pictures))
        for name, vlm in found.items()
    }


def by_head(prompt, seed=0, layers=2, heads=3):
    n = prompt.length
    values = np.random.default_rng(seed).random((layers, heads, n), dtype=np.float32)
    return scores(
        values, {"layer": range(layers), "head": range(heads), "position": range(n)},
        name="attention", layout=prompt.layout, pictures=prompt.images[0],
        about={"model": "tiny", "clean": 13.306640625},
    )  # fmt: skip


def test_reductions_are_numpy_s(prompts):
    found = by_head(prompts["crop"][1])
    plain = found.values.to_numpy()
    np.testing.assert_array_equal(found.sum("head").values, plain.sum(1))
    np.testing.assert_array_equal(found.mean("layer", "head").values, plain.mean((0, 1)))
    np.testing.assert_array_equal(found.max("position").values, plain.max(2))
    np.testing.assert_array_equal(found.sel(layer=1, head=[2, 0]).values, plain[1][[2, 0]])
    np.testing.assert_array_equal((found - found.mean("head")).values,
                                  plain - plain.mean(1, keepdims=True))  # fmt: skip
    assert found.sum("head").axes == ("layer", "position") and found.shape == plain.shape


@pytest.mark.parametrize("name", ["crop", "tiles", "merge"])
def test_kinds_are_those_of_the_layout(prompts, name):
    _, prompt = prompts[name]
    found, plain = by_head(prompt).by_kind(), by_head(prompt).values.to_numpy()
    kinds = found.values["kind"].to_numpy().tolist()
    assert kinds[:2] == ["image 0", "image 1"] and set(kinds[2:]) <= {"text", "special"}
    for kind in kinds:
        mine = [i for i, k in enumerate(prompt.layout.kinds) if str(k) == kind]
        np.testing.assert_allclose(
            found.sel(kind=kind).values, plain[:, :, mine].sum(-1), rtol=1e-6
        )
    np.testing.assert_allclose(found.sum("kind").values, plain.sum(-1), rtol=1e-5)


@pytest.mark.parametrize("name", ["crop", "tiles", "merge"])
def test_the_largest_with_what_stands_there(prompts, name):
    _, prompt = prompts[name]
    found = by_head(prompt)
    plain, top = found.values.to_numpy(), found.top(7)
    assert top["attention"].tolist() == sorted(plain.ravel().tolist(), reverse=True)[:7]
    table = prompt.layout.to_dataframe().set_index("position")
    for row in top.to_dict("records"):
        assert plain[row["layer"], row["head"], row["position"]] == row["attention"]
        assert row["token"] == table.loc[row["position"], "token"]
        assert row["patch"] == table.loc[row["position"], "patch"]
        assert row["pixels"] == table.loc[row["position"], "pixels"]
    signed = (found - 0.6).top(3, largest="magnitude")
    assert signed["attention"].abs().tolist() == pytest.approx(
        np.sort(np.abs(plain - np.float32(0.6)).ravel())[::-1][:3].tolist()
    )


def test_the_smallest_and_signs(prompts):
    _, prompt = prompts["crop"]
    found = by_head(prompt)
    plain, low = found.values.to_numpy(), found.bottom(5)
    assert low["attention"].tolist() == sorted(plain.ravel().tolist())[:5]
    for row in low.to_dict("records"):
        assert plain[row["layer"], row["head"], row["position"]] == row["attention"]
    np.testing.assert_array_equal((-found).values, -plain)
    np.testing.assert_array_equal(abs(found - 0.5).values, np.abs(plain - np.float32(0.5)))
    np.testing.assert_array_equal((1 - found).values, 1 - plain)
    np.testing.assert_array_equal((2 * (1 + found)).values, (plain + 1) * 2)
    ranks = replace(found, name="rank of 'red'")  # the first is the best
    assert str(low["layer"][0]) in repr(ranks).splitlines()[3]
    assert f"{low['attention'][0]:.4g}" in repr(ranks)
    assert f"{low['attention'][0]:.4g}" not in repr(found)


@pytest.mark.parametrize("name", ["crop", "tiles", "merge"])
def test_numbers_of_ones_own_stand_where_they_were_read(prompts, name):
    vlm, prompt = prompts[name]
    _, cache = vlm.run_with_cache(prompt, names_filter="*.hook_out")
    _, text = vlm.run_with_cache(prompt, names_filter="blocks.*.hook_resid_post")
    norms = text.stack("resid_post").norm(dim=-1)[:, 0]
    found = Scores.of(prompt, norms, axes={"layer": range(len(norms))}, name="norm")
    assert found.axes == ("layer", "position")
    for row in found.top(3).to_dict("records"):
        assert row["norm"] == norms[row["layer"], row["position"]]
    assert found.of_kind("image").over_picture().sliders
    if name != "crop":
        return  # towers there know no single patches, or cut them into tiles
    rows = cache["projector.hook_out"].norm(dim=-1)
    at = Patches(1, rows=0)
    own = Scores.of(prompt, rows[1, : prompt.layout.image[1].grid.cols], at, space="projector")
    best = own.top(1).iloc[0]
    assert best["row"] == 1 and best["score"] == rows[1, best["position"]]
    assert own.over_picture() and Scores.of(prompt, [1.0, 2.0], at=(0, -1)).axes == ("position",)


def test_numbers_that_do_not_fit_their_places(prompts):
    _, prompt = prompts["crop"]
    for values, options, message in (
        (np.zeros(3), {}, "do not fit .'position'. of sizes"),
        (np.zeros((2, prompt.length)), {}, "name the axes before it"),
        (np.zeros(prompt.length), {"axes": {"layer": [0]}}, "'layer', 'position'"),
        (np.zeros((1, prompt.length)), {"axes": {"dose": [0]}}, "axes among"),
        (np.zeros(1), {"at": Find("nowhere")}, "does not occur"),
    ):
        with pytest.raises(VLMLensError, match=message):
            Scores.of(prompt, values, **options)


def test_positions_of_a_kind_can_be_chosen(prompts):
    _, prompt = prompts["tiles"]
    found = by_head(prompt)
    mine = found.of_kind("image 1").values["position"].to_numpy().tolist()
    assert mine == [i for i, k in enumerate(prompt.layout.kinds) if str(k) == "image 1"]
    both = found.of_kind("image").values["position"].to_numpy().tolist()
    assert both == [i for i, k in enumerate(prompt.layout.kinds) if str(k).startswith("image")]
    with pytest.raises(VLMLensError, match="kind 'image 7'; there are"):
        found.of_kind("image 7")


def test_scores_in_the_tower_know_the_row_of_each_picture(prompts):
    vlm, prompt = prompts["crop"]
    _, cache = vlm.run_with_cache(prompt, names_filter="vision.blocks.0.hook_resid_post")
    stream = cache["vision.blocks.0.hook_resid_post"]
    pairs = [(r, p) for im in prompt.layout.images for r, ps in im.vision.sequences for p in ps]
    norms = torch.stack([stream[r, p].norm() for r, p in pairs]).numpy()
    found = scores(
        norms, {"position": [p for _, p in pairs]}, [r for r, _ in pairs],
        name="norm", layout=prompt.layout, space="vision",
    )  # fmt: skip
    assert found.values.shape == (stream.shape[0] * stream.shape[1],)
    one = found.top(1).iloc[0]
    assert float(stream[one["row"], one["position"]].norm()) == pytest.approx(one["norm"])
    assert one["kind"] == f"image {one['row']}"
    by_picture = found.by_kind("mean")
    assert float(by_picture.sel(kind="image 1").values) == pytest.approx(
        float(stream[1].norm(dim=-1).mean()), rel=1e-5
    )


def test_marked_positions_can_be_left_out(prompts):
    _, prompt = prompts["crop"]
    whole = by_head(prompt)
    found = Scores(whole.values, "attention", whole.layout, marked={"sinks": (0, 4)})
    rest = found.without_sinks()
    assert rest.shape[-1] == whole.shape[-1] - 2 and rest.marked == {}
    assert not {0, 4} & set(rest.values["position"].to_numpy().tolist())
    with pytest.raises(VLMLensError, match="Nothing is marked 'sinks'"):
        whole.without_sinks()


@pytest.mark.parametrize("name", ["crop", "tiles", "merge"])
def test_saved_and_loaded_scores_are_the_same(prompts, name, tmp_path):
    _, prompt = prompts[name]
    found = by_head(prompt)
    again = Scores.load(found.save(tmp_path / "scores"))
    xr.testing.assert_identical(again.values, found.values)
    assert again.layout == found.layout and again.about == found.about
    assert [p.tobytes() for p in again.pictures] == [p.tobytes() for p in found.pictures]
    pd_found, pd_again = found.to_dataframe(), again.to_dataframe()
    assert pd_found.equals(pd_again)
    (tmp_path / "scores" / "scores.json").write_text(json.dumps({"scores": 1}))
    with pytest.raises(VLMLensError, match="damaged"):
        Scores.load(tmp_path / "scores")
    with pytest.raises(VLMLensError, match="holds no scores"):
        Scores.load(tmp_path / "nothing")


def test_what_is_printed_names_the_ten_largest(prompts):
    found = by_head(prompts["crop"][1])
    text = repr(found)
    assert text.startswith("Scores(attention: layer 2, head 3, position")
    assert "model tiny; clean 13.31\n" in text and f"{found.top(1)['attention'][0]:.4g}" in text
    html = found._repr_html_()
    assert html.count("<tr") == 11 and "<b>Scores(attention" in html
    one = found.sum("layer", "head", "position")
    assert f"attention: {float(one.values):.4g})" in repr(one)
    assert "<table" not in one._repr_html_()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda s: s.sum("heads"), "no axis 'heads'.*Did you mean 'head'"),
        (lambda s: s.sum(), "Say over which axes"),
        (lambda s: s.sel(layer=7), "layer 7 is not among these scores: they have 0, 1"),
        (lambda s: s.top(0), "at least 1"),
        (lambda s: s.top(3, largest="absolute"), "'value' or 'magnitude'"),
        (lambda s: s.by_kind("median"), "not 'median'"),
        (lambda s: s.sum("position").by_kind(), "no axis 'position'"),
        (lambda s: s + s.sel(head=[0, 1]), "other coordinates"),
        (lambda s: s.over_picture(layer=9), "layer 9 is not among"),
        (lambda s: s.sum("layer", "head", "position").plot(), "a single number"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(prompts, wrong, message):
    with pytest.raises(VLMLensError, match=message):
        wrong(by_head(prompts["crop"][1]))


def test_scores_without_patches_have_no_picture(load):
    vlm = load("clip-llama")
    with pytest.raises(VLMLensError, match="The prompt has no picture"):
        by_head(vlm.prompt("Q:Peru\nA:")).over_picture()
    with pytest.raises(VLMLensError, match="need the layout"):
        scores(np.zeros(3), {"position": range(3)})
    with pytest.raises(VLMLensError, match="axes among"):
        scores(np.zeros(3), {"block": range(3)})


@pytest.mark.slow
def test_a_save_that_is_killed_leaves_the_old_scores_or_the_new(prompts, tmp_path):
    _, prompt = prompts["crop"]
    old, new = by_head(prompt, seed=1), by_head(prompt, seed=2)
    folder = tmp_path / "scores"
    seen = set()
    for _ in at_every_operation(lambda: old.save(folder), lambda: new.save(folder)):
        found = Scores.load(folder).values
        which = "old" if found.equals(old.values) else "new"
        seen.add(which)
        assert which == "old" or found.equals(new.values)
    assert seen == {"old", "new"} and Scores.load(folder).values.equals(new.values)
