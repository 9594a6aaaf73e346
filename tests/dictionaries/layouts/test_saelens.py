"""SAELens, from folders written as it writes them, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dictionaries import written
from vlm_lens.dictionaries import Dictionary, DictionaryError


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk"])
def test_autoencoders(tmp_path, kind, centre, old):
    w = written.weights()
    k = {"k": written.K} if kind == "topk" else {}
    written.saelens(tmp_path, w, kind, old=old, apply_b_dec_to_input=centre, **k)
    sae = Dictionary.from_pretrained(tmp_path)
    assert sae.point == "blocks.1.hook_resid_post"
    activation = {
        "standard": written.relu, "jumprelu": written.jump(w["threshold"]),
        "topk": written.largest(written.K),
    }[kind]  # fmt: skip
    written.check(sae, w, activation, centre=centre)


def test_features_in_units_of_their_decoders_norm(tmp_path):
    w = written.weights()
    written.saelens(tmp_path, w, "topk", k=written.K, rescale_acts_by_decoder_norm=True)
    norm = np.linalg.norm(w["w_dec"], axis=1)
    scaled = w | {"w_enc": w["w_enc"] * norm, "b_enc": w["b_enc"] * norm,
                  "w_dec": w["w_dec"] / norm[:, None]}  # fmt: skip
    written.check(Dictionary.from_pretrained(tmp_path), scaled, written.largest(written.K))


def test_batch_topk(tmp_path):
    w = written.weights()
    written.saelens(tmp_path, w, "batchtopk", k=written.K)
    sae = Dictionary.from_pretrained(tmp_path)
    assert sae.activation == "BatchTopK(k=5)"
    x = torch.from_numpy(written.places())
    z = written.coded(w, x.numpy(), lambda z: z)[0]
    cut = np.sort(np.maximum(z, 0).ravel())[-written.K * len(z)]
    want = np.where(z >= cut, np.maximum(z, 0), 0)
    np.testing.assert_allclose(sae.encode(x).numpy(), want, atol=1e-4)
    with pytest.raises(DictionaryError, match="threshold"):
        sae.splice()


@pytest.mark.parametrize("skip", [False, True])
def test_transcoders(tmp_path, skip):
    w = written.weights(d_out=16)
    points = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"}
    kind = "skip_transcoder" if skip else "jumprelu_transcoder"
    written.saelens(tmp_path, w, kind, skip=skip, d_out=16, metadata=points)
    sae = Dictionary.from_pretrained(tmp_path)
    assert (sae.point, sae.point_out) == tuple(points.values())
    written.check(sae, w, written.relu if skip else written.jump(w["threshold"]), skip=skip)


def test_what_is_not_what_it_is_called_is_refused(tmp_path):
    w = written.weights()
    folder = written.saelens(
        tmp_path / "a", w, "transcoder",
        metadata={"hook_name": "blocks.1.ln2.hook_normalized",
                  "hook_name_out": "blocks.1.hook_mlp_out"},
    )  # fmt: skip
    with pytest.raises(DictionaryError, match="point="):  # there: before the norm's weight
        Dictionary.from_pretrained(folder)
    sae = Dictionary.from_pretrained(folder, point="blocks.1.ln2.hook_normalized")
    assert sae.point_out == "blocks.1.hook_mlp_out"
    folder = written.saelens(tmp_path / "b", w, "standard", normalize_activations="layer_norm")
    with pytest.raises(DictionaryError, match="layer_norm"):
        Dictionary.from_pretrained(folder)
    with pytest.raises(DictionaryError, match="gated"):
        Dictionary.from_pretrained(written.saelens(tmp_path / "c", w, "gated"))


@pytest.mark.parametrize("layout", ["gemma", "eleuther", "saelens", "skip"])
def test_what_is_saved_loads_the_same(tmp_path, layout):
    w = written.weights()
    if layout == "gemma":
        written.gemma_scope(tmp_path / "a", w, hook_in="model.layers.3.self_attn.o_proj.input")
    elif layout == "eleuther":
        written.eleuther(tmp_path / "a", w)
    elif layout == "skip":
        written.eleuther(tmp_path / "a", w, transcode=True, skip=True)
    else:
        written.saelens(tmp_path / "a", w, "standard")
    points = {"point": "blocks.3.ln2.hook_normalized", "point_out": "blocks.3.hook_mlp_out"}
    sae = Dictionary.from_pretrained(tmp_path / "a", **(points if layout == "skip" else {
        "point": "blocks.3.hook_resid_post"}))  # fmt: skip
    sae.save_pretrained(tmp_path / "b", card="words")
    again = Dictionary.from_pretrained(tmp_path / "b")
    x = torch.from_numpy(written.places())
    assert (again.point, again.point_out) == (sae.point, sae.point_out)
    assert torch.equal(again.encode(x), sae.encode(x))
    assert torch.equal(again.decode(sae.encode(x), x), sae.decode(sae.encode(x), x))
    assert (tmp_path / "b" / "README.md").read_text() == "words"
    value = sae.save(tmp_path / "value")
    assert Dictionary.load(value) == sae
