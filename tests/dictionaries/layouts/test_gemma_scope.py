"""Gemma Scope 2, from folders written as it is published."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dictionaries import written
from vlm_lens.dictionaries import Dictionary, DictionaryError

LAYER = "model.layers.17"


@pytest.mark.parametrize(
    ("hook", "point"),
    [
        (f"{LAYER}.output", "blocks.17.hook_resid_post"),
        (f"{LAYER}.self_attn.o_proj.input", "blocks.17.attn.hook_z"),
        (f"{LAYER}.post_feedforward_layernorm.output", "blocks.17.hook_mlp_out"),
    ],
)
def test_an_autoencoder(tmp_path, hook, point):
    w = written.weights()
    name = "resid_post/layer_17_width_16k_l0_medium"
    written.gemma_scope(tmp_path / name, w, hook_in=hook)
    sae = Dictionary.from_pretrained(tmp_path, name)
    assert sae.point == sae.point_out == point
    assert not sae.transcodes
    assert sae.activation == "JumpReLU"
    assert sae.about["model"] == "google/gemma-3-4b-it"
    assert sae.about["layout"] == "Gemma Scope 2"
    written.check(sae, w, written.jump(w["threshold"]))


@pytest.mark.parametrize("affine", [False, True])
def test_a_transcoder(tmp_path, affine):
    w = written.weights(d_in=16, d_out=32)
    written.gemma_scope(
        tmp_path, w, hook_in=f"{LAYER}.pre_feedforward_layernorm.output",
        hook_out=f"{LAYER}.post_feedforward_layernorm.output", affine=affine,
    )  # fmt: skip
    sae = Dictionary.from_pretrained(tmp_path)
    assert (sae.point, sae.point_out) == (
        "blocks.17.ln2.hook_normalized", "blocks.17.hook_mlp_out",
    )  # fmt: skip
    written.check(sae, w, written.jump(w["threshold"]), d=16, skip=affine)
    x = torch.from_numpy(written.places(d=16))
    if affine:
        with pytest.raises(DictionaryError, match="decode\\(features, x\\)"):
            sae.decode(sae.encode(x))
    with pytest.raises(DictionaryError, match="error\\(x, y\\)"):
        sae.error(x)


def test_without_a_config_the_folder_says_it(tmp_path):
    w = written.weights()
    for kind, point in (
        ("resid_post_all", "blocks.5.hook_resid_post"), ("attn_out", "blocks.5.attn.hook_z"),
        ("mlp_out_all", "blocks.5.hook_mlp_out"),
        ("transcoder_all", "blocks.5.ln2.hook_normalized"),
    ):  # fmt: skip
        name = f"{kind}/layer_5_width_16k_l0_big"
        folder = written.gemma_scope(tmp_path / name, w, hook_in=f"{LAYER}.output")
        (folder / "config.json").unlink()
        assert Dictionary.from_pretrained(tmp_path, name).point == point


def test_what_is_not_read(tmp_path):
    w = written.weights()
    folder = written.gemma_scope(tmp_path / "a", w, hook_in=f"{LAYER}.mlp.strange")
    with pytest.raises(DictionaryError, match="point="):
        Dictionary.from_pretrained(folder)
    wide = {n: torch.from_numpy(np.stack([w[n]] * 2)) for n in ("w_enc", "w_dec")}
    save_file(wide, folder / "params.safetensors")
    with pytest.raises(DictionaryError, match="several layers"):
        Dictionary.from_pretrained(folder)
