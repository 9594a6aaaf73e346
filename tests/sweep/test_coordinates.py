"""Sweeps as scores: every measurement at its coordinates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny

from vlm_lens import (
    Ablate,
    AttentionKnockout,
    Find,
    Images,
    Last,
    Patches,
    Scores,
    Steer,
    VLMLensError,
)
from vlm_lens.measures import Prob
from vlm_lens.sweep import Grid, Variant

PICTURES = [tiny.noise_picture(i, (64, 32)) for i in range(2)]
TEXT = "<image>b<image>A:"


@pytest.fixture(scope="module")
def case(load):
    vlm = load("clip-llama")
    return vlm, vlm.prompt(TEXT, PICTURES)


def sweep(case, variants, prompt=None, measure=100):
    vlm, own = case
    return vlm.sweep(own if prompt is None else prompt, variants, measure=Prob(measure),
                     progress=False)  # fmt: skip


def test_a_patch_sweep_over_the_picture_is_one_call(case, tmp_path):
    vlm, prompt = case
    patches = prompt.layout.image[1].positions
    edits = [Ablate(f"blocks.{n}.hook_resid_pre", p) for n in (1, 0) for p in reversed(patches)]
    found = sweep(case, edits).scores()
    assert found.axes == ("layer", "position") and found.name == "prob"
    assert found.values["position"].to_numpy().tolist() == sorted(patches)
    assert found.values["layer"].to_numpy().tolist() == [0, 1]
    for edit in edits[::5]:
        prob = vlm.run(prompt, interventions=edit)[0, -1].softmax(-1)[100]
        layer, position = int(edit.point.split(".")[1]), edit.at.positions[0]
        at = found.sel(layer=layer, position=position).values
        np.testing.assert_allclose(float(at), float(prob), rtol=1e-4)
    plain = float(vlm.run(prompt)[0, -1].softmax(-1)[100])
    assert found.about["without intervention"] == pytest.approx(plain, rel=1e-5)
    patch = found.places()[3]
    assert patch.kind == "image 1" and patch.patch == (0, 3)
    assert "data-i" in found.over_picture(layer=1)._repr_html_()
    found.save(tmp_path / "scores")
    assert Scores.load(tmp_path / "scores").values.equals(found.values)


def test_places_of_tower_and_projector(case):
    _, prompt = case
    for point, space in (("vision.hook_embed", "vision"), ("projector.hook_out", "projector")):
        grid = prompt.layout.image[1].space(space).grid()
        edits = [Ablate(point, Patches(1, rows=r, cols=c)) for r in (1, 0) for c in range(4)]
        result = sweep(case, edits)
        found = result.scores()
        assert found.space == space and found.axes == ("position",)
        assert found.values["position"].to_numpy().tolist() == list(grid.positions[:8])
        assert [p.patch for p in found.places()] == [divmod(i, 4) for i in range(8)]
        column = [r["prob"] for r in result.records]
        np.testing.assert_allclose(found.values, column[4:] + column[:4], rtol=1e-6)
        assert result.positions == {}


def test_heads_windows_scales_and_other_labels(case):
    vlm, prompt = case
    _, cache = vlm.run_with_cache(
        vlm.prompt(TEXT, PICTURES[::-1]), names_filter="blocks.*.attn.hook_z"
    )
    grid = Grid("blocks.*.attn.hook_z", at=Last(), vectors=cache, heads=range(4))
    result = sweep(case, grid)
    heads = result.scores()
    assert heads.axes == ("layer", "head") and heads.shape == (2, 4)
    np.testing.assert_allclose(
        heads.values, np.reshape([r["prob"] for r in result.records], (2, 4)), rtol=1e-6
    )
    assert heads.plot().data
    windows = sweep(case, AttentionKnockout(Last(), Images()).each_window(1)).scores()
    assert windows.axes == ("layer",)
    named = [
        Variant(AttentionKnockout(Last(), Images(i), layers=n), {"edge": f"image {i}", "layer": n})
        for i in range(2)
        for n in range(2)
    ]
    found = sweep(case, named).scores()
    assert found.axes == ("layer", "variant")
    assert found.values["variant"].to_numpy().tolist() == ["edge image 0", "edge image 1"]
    push = [Steer("blocks.0.hook_resid_post", Last(), 1.0, s) for s in (2, 1)]
    assert sweep(case, push).scores().values["scale"].to_numpy().tolist() == [1, 2]
    cells = [(layer, p) for layer in range(2) for p in (0, 3, np.int64(5))]
    point = "blocks.{}.hook_resid_post"
    placed = [
        Variant([Ablate("hook_merged", 2), Ablate(point.format(layer), int(p))],
                {"layer": layer, "position": p})
        for layer, p in cells
    ]  # fmt: skip
    result = sweep(case, placed)
    found = result.scores()
    assert found.axes == ("layer", "position")
    assert found.values["position"].to_numpy().tolist() == [0, 3, 5]
    column = [r["prob"] for r in result.records]
    np.testing.assert_allclose(found.values, np.reshape(column, (2, 3)), rtol=1e-6)
    assert found.of_kind("image").over_picture()
    elsewhere = [replace(v, labels={**v.labels, "position": 1000 + v.labels["position"]})
                 for v in placed]  # fmt: skip
    assert sweep(case, elsewhere).scores().axes == ("layer", "variant")
    single = sweep(case, Ablate("hook_merged", Images())).scores()
    assert single.axes == ("variant",) and single.shape == (1,)


def test_each_row_of_a_batch(case):
    vlm, _ = case
    batch = vlm.prompt(["Q:<image>\nA:", "Q:Peru <image>\nA:"], [[p] for p in PICTURES])
    edits = [Ablate("hook_merged", at) for at in (Find("A"), Find("Q", 0))]
    result = sweep(case, edits, batch)
    for row, layout in enumerate(batch.layouts):
        found = result.scores(row=row)
        wanted = [layout.find("Q", 0), layout.find("A")]
        assert found.values["position"].to_numpy().tolist() == wanted
        mine = [r["prob"] for r in result.records if r["row"] == row]
        np.testing.assert_allclose(found.values, mine[::-1], rtol=1e-6)
        assert found.pictures == tuple(batch.images[row])


def test_what_is_refused(case):
    result = sweep(case, [Ablate("hook_merged", Last())])
    for options, says in (
        ({"row": 3}, "nothing at row 3"),
        ({"value": "prop"}, "no measured number"),
    ):
        with pytest.raises(VLMLensError, match=says):
            result.scores(**options)
    twice = sweep(case, [Ablate("hook_merged", Last())] * 2)
    with pytest.raises(VLMLensError, match="same labels"):
        twice.scores()
