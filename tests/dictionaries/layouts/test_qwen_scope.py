"""Qwen-Scope, from files written as it is published; no code in a file is run."""

from __future__ import annotations

import os
import pickle

import pytest
import torch

from dictionaries import written
from vlm_lens.dictionaries import Dictionary, DictionaryError

REPO = "SAE-Res-Qwen3.5-9B-Base-W64K-L0_5"


def test_a_layer(tmp_path):
    w = written.weights()
    repo = written.qwen_scope(tmp_path / REPO, w, layer=12)
    written.qwen_scope(repo, w, layer=3)
    sae = Dictionary.from_pretrained(repo, "layer12")
    assert sae.point == "blocks.12.hook_resid_post"
    assert sae.activation == "TopK(k=5, signed)"
    assert sae.about["model"] == "Qwen/Qwen3.5-9B-Base"
    written.check(sae, w, written.largest(written.K, signed=True))
    with pytest.raises(DictionaryError, match="layer12, layer3"):
        Dictionary.from_pretrained(repo)
    with pytest.raises(DictionaryError, match="layer12"):
        Dictionary.from_pretrained(repo, "layer13")


def test_k_has_to_be_known(tmp_path):
    folder = written.qwen_scope(tmp_path / "mine", written.weights())
    with pytest.raises(DictionaryError, match="give k="):
        Dictionary.from_pretrained(folder)
    assert Dictionary.from_pretrained(folder, k=3).activation == "TopK(k=3, signed)"


class _Runs:
    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_a_file_is_not_run(tmp_path, how):
    trap = _Runs()
    trap.path = tmp_path / "ran"
    file = tmp_path / REPO / "layer1.sae.pt"
    file.parent.mkdir()
    if how == "torch":
        torch.save({"W_enc": trap}, file)
    else:
        file.write_bytes(pickle.dumps({"W_enc": trap}))
    with pytest.raises(DictionaryError, match="more than tensors"):
        Dictionary.from_pretrained(file.parent)
    assert not trap.path.exists()
