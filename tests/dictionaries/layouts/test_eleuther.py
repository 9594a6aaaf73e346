"""EleutherAI's sparsify, from folders written as it writes them."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest

from dictionaries import written
from vlm_lens.dictionaries import Dictionary, DictionaryError


@pytest.mark.parametrize("signed", [False, True])
def test_an_autoencoder_takes_the_bias_off_first(tmp_path, signed):
    w = written.weights()
    written.eleuther(tmp_path / "model.layers.24", w, signed=signed)
    sae = Dictionary.from_pretrained(tmp_path, "model.layers.24")
    assert sae.point == "blocks.24.hook_resid_post"
    assert sae.activation == f"TopK(k=5{', signed by magnitude' if signed else ''})"
    activation = written.largest(written.K, signed, by_magnitude=signed)
    written.check(sae, w, activation, centre=True)
    with pytest.warns(match="SAELens sets to 0") if signed else nullcontext():
        folder = sae.save_pretrained(tmp_path / "again")
    again = Dictionary.from_pretrained(folder)
    written.check(again, w, activation, centre=True)
    sae.save(tmp_path / "value")
    assert Dictionary.load(tmp_path / "value") == sae


def test_a_skip_transcoder_does_not(tmp_path):
    w = written.weights()
    folder = written.eleuther(tmp_path / "layers.3.mlp", w, transcode=True, skip=True)
    sae = Dictionary.from_pretrained(folder)
    assert (sae.point, sae.point_out) == ("blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out")
    written.check(sae, w, written.largest(written.K), skip=True)


def test_the_point_is_the_folders_name(tmp_path):
    w = written.weights()
    for name, point in (("layers.2.mlp", "blocks.2.hook_mlp_out"),
                        ("layers.2.self_attn", "blocks.2.hook_attn_out")):  # fmt: skip
        assert Dictionary.from_pretrained(written.eleuther(tmp_path / name, w)).point == point
    folder = written.eleuther(tmp_path / "somewhere", w)
    with pytest.raises(DictionaryError, match="point="):
        Dictionary.from_pretrained(folder)
    sae = Dictionary.from_pretrained(folder, point="blocks.0.hook_resid_post")
    assert sae.point_out == "blocks.0.hook_resid_post"


def test_other_activations_are_refused(tmp_path):
    folder = written.eleuther(tmp_path / "layers.1", written.weights())
    path = folder / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"activation": "groupmax"}))
    with pytest.raises(DictionaryError, match="groupmax"):
        Dictionary.from_pretrained(folder)
