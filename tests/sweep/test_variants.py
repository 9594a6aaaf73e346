from __future__ import annotations

import pytest
import torch
from typecheck import unchecked

from vlm_lens import Ablate, ActivationPatch, Last, Patches, Steer, VLMLensError
from vlm_lens.interventions.base import compose
from vlm_lens.sweep.variants import Grid, Variant, expand

V, W = torch.ones(32), torch.zeros(32)


def test_grid_is_every_combination_with_labels(clip):
    grid = Grid(
        "blocks.*.attn.hook_z", at={"last": Last(), "patch": Patches(0, rows=0, cols=0)},
        heads=[0, 2], scale=[1, 2], vectors={"a": torch.ones(8), "b": torch.zeros(8)}, layers=[1],
    )  # fmt: skip
    found = expand(grid, clip.architecture.points)
    assert len(found) == 1 * 2 * 2 * 2 * 2
    assert dict(found[0].labels) == {
        "point": "blocks.1.attn.hook_z", "layer": 1, "at": "last", "head": 0, "scale": 1,
        "vector": "a",
    }  # fmt: skip
    assert found[0].intervention == Steer(
        "blocks.1.attn.hook_z", Last(), torch.ones(8), 1.0, heads=[0]
    )


def test_without_scales_vectors_replace(clip):
    (first, *_) = expand(Grid("blocks.*.hook_resid_post", at=Last(), vectors=V), clip.points())
    assert first.intervention == ActivationPatch("blocks.0.hook_resid_post", Last(), V)


def test_a_grid_freezes_each_vector_once(clip):
    """A tensor on a GPU would be fetched for every variant."""
    grid = Grid("blocks.*.hook_resid_post", at=[-1, -2], vectors={"v": V, "w": W, "none": 0.0})
    found = [variant.intervention.value for variant in expand(grid, clip.points())]
    assert len(found) == 2 * 2 * 3 and len({id(value) for value in found[0::3]}) == 1
    assert len({id(value) for value in found[1::3]}) == 1 and torch.equal(found[1].data, W)
    with pytest.raises(VLMLensError, match="complex"):
        expand(
            Grid("blocks.0.hook_resid_post", -1, torch.ones(3, dtype=torch.cfloat)), clip.points()
        )


def test_each_layer_goes_through_the_points_in_order(clip):
    found = expand(Ablate("vision.blocks.*.hook_mlp_out", at=[0]).each_layer(), clip.points())
    assert [v.labels["layer"] for v in found] == [0, 1, 2]


def test_a_variant_of_several_interventions(clip, monkeypatch):
    one, other = Ablate("blocks.0.hook_mlp_out", Last()), Ablate("blocks.1.hook_mlp_out", Last())
    made = Variant([one, other], {"which": "both"})
    assert made.intervention == one + other and expand([made], clip.points()) == [made]
    swept = clip.sweep("Q:", [Variant([]), made, Variant(one + other)], progress=False)
    assert swept.records[0]["prob"] == pytest.approx(swept.baseline[0]["prob"])
    assert swept.records[1]["prob"] == pytest.approx(swept.records[2]["prob"])  # other rows
    monkeypatch.setattr("vlm_lens.sweep.variants.compose", unchecked(compose))
    with pytest.raises(VLMLensError, match="intervention"):
        Variant([one, 3])
    with pytest.raises(VLMLensError, match="labels of a Variant are a mapping"):
        Variant(one, "both")


def test_errors_name_what_is_wrong(clip):
    with pytest.raises(VLMLensError, match="no point in the layers"):
        expand(Grid("blocks.*.hook_resid_post", at=Last(), vectors=V, layers=[7]), clip.points())
    composed = Ablate("blocks.0.hook_mlp_out", Last()) + Ablate("blocks.1.hook_mlp_out", Last())
    with pytest.raises(VLMLensError, match="no points to go through"):
        expand(composed.each_layer(), clip.points())
    assert expand([composed], clip.points())[0].labels["intervention"] == repr(composed)
