"""Every family's logits and streams are the sum of their parts, at image positions too."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from families import bench
from families.every import LMS, VLMS
from vlm_lens import All, At, Images, VLMLensError

# families whose tower cannot be taken apart, and what they say
TOWERLESS = {
    "vipllava": "reads several layers", "mllama": "several earlier ones",
    "fuyu": "no vision tower", "chameleon": "no vision tower",
}  # fmt: skip
LINEAR = {"idefics3", "smolvlm", "gemma3", "paligemma"}


@pytest.mark.parametrize("name", (*VLMS, *LMS))
def test_logits_and_stream_at_every_position(name, made):
    vlm = made(name)
    prompt = bench.one(vlm) if name in VLMS else vlm.prompt("Q:Greece\nA:")
    free = [t for t in range(10, vlm.cfg.d_vocab) if t not in vlm.architecture.decoder.barred]
    tokens = [free[i * len(free) // 3] for i in range(3)]
    found = vlm.decompose(prompt, at=All(), tokens=tokens)
    with torch.no_grad():
        out = vlm.hf_model(**prompt.inputs, use_cache=False)
    expected = out.logits[0][:, tokens].double().numpy()
    assert len(expected) == len(prompt.layout)
    error = np.abs(found.values.sum("component").to_numpy() - expected).max()
    assert error < 1e-5 * np.abs(expected).max()
    last = f"blocks.{vlm.cfg.n_layers - 1}.hook_resid_post"
    stream = vlm.run_with_cache(prompt, names_filter=last)[1][last][0].double().numpy()
    vectors = vlm.decompose(prompt, at=All()).values.sum("component").to_numpy()
    assert np.abs(vectors - stream).max() < 1e-5 * np.abs(stream).max()
    whole = found.about.get("taken whole", {})
    assert len(whole) == (2 if name == "qwen3_5" else 0)
    if not whole:
        by_source = vlm.decompose(prompt, at=All(), tokens=tokens, by="source")
        heads = found.heads().sel(layer=by_source.values["layer"].to_numpy().tolist())
        heads = heads.values.transpose("query", "token", "layer", "head")
        error = np.abs(by_source.values.sum("position") - heads).max()
        assert error < 1e-5 * np.abs(heads).max()
        assert len(by_source.about.get("left out", {})) == (name == "mllama")


def test_deep_stack_is_a_part(made):
    vlm = made("qwen3_vl")
    prompt = bench.one(vlm)
    found = vlm.decompose(prompt, at=All())
    added = found.sel(component="L0 added").values.to_numpy()
    image = list(prompt.layout.image[0].text.grids[0].positions)
    blocks = list(prompt.layout.image[0].projector.grids[0].positions)
    name = "projector.deepstack.0.hook_out"
    features = vlm.run_with_cache(prompt, names_filter=name)[1][name][0].numpy()
    np.testing.assert_allclose(added[image], features[blocks], rtol=1e-4, atol=1e-5)
    assert not np.delete(added, image, 0).any()


@pytest.mark.parametrize("name", VLMS)
def test_what_the_tower_brings(name, made):
    vlm, direction = made(name), torch.linspace(-1, 1, made(name).cfg.d_model)
    prompt = bench.one(vlm)
    if name in TOWERLESS:
        with pytest.raises(VLMLensError, match=TOWERLESS[name]):
            vlm.decompose(prompt, part="vision", direction=direction)
        return
    found = vlm.decompose(prompt, part="vision", direction=direction)
    assert found.about["projector"].startswith("linear") == (name in LINEAR)
    kinds = found.values["part"].to_numpy()
    assert {"input", "head", "mlp", "constant"} <= set(kinds)
    out = vlm.run_with_cache(prompt, names_filter="projector.hook_out")[1]["projector.hook_out"]
    rows, positions = zip(*_everywhere(prompt, vlm), strict=True)
    value = float((out[list(rows), list(positions)] @ direction).sum())
    assert float(found.values.sum()) == pytest.approx(value, rel=1e-4, abs=1e-3)
    by_source = vlm.decompose(prompt, part="vision", direction=direction, by="source")
    heads = found.heads().values
    error = np.abs(by_source.values.sum("position") - heads).max()
    assert error < 1e-5 * np.abs(heads).max()


def _everywhere(prompt, vlm):
    return Images().resolve(prompt.layout, vlm.architecture.points["projector.hook_out"].space)


@pytest.mark.parametrize("name", sorted(LINEAR - {"gemma3"}))  # there a norm scales the biases
def test_through_a_linear_projector_the_constant_is_no_pictures(name, made):
    """What is left is the biases' alone, and another picture has the same."""
    vlm, direction = made(name), torch.linspace(-1, 1, made(name).cfg.d_model)
    grid = bench.one(vlm).layout.images[0].projector.grids[0]
    at = At(grid.positions[0])
    left = []
    for seed in (0, 7):
        prompt = vlm.prompt("Q:<image>\nA:", [tiny.noise_picture(seed, (64, 48))])
        found = vlm.decompose(prompt, at=at, part="vision", direction=direction)
        left.append(float(found.values[-1]))
    assert left[0] == pytest.approx(left[1], rel=1e-3, abs=1e-3)
