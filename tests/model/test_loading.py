"""Models by folder, and what is said of names that are none."""

from __future__ import annotations

import json

import pytest
import tiny
import torch

from vlm_lens import HookedVLM
from vlm_lens.errors import ModelError


def test_a_folder(load):
    for name in (*tiny.VLMS, *tiny.LMS):
        vlm = load(name)
        fresh = tiny.build(name)
        assert type(vlm.hf_model) is type(fresh)
        assert not vlm.hf_model.training
        for key, value in fresh.state_dict().items():
            assert torch.equal(vlm.hf_model.state_dict()[key], value)
        assert vlm.hf_model.config._attn_implementation == "sdpa"


@pytest.fixture
def folder(tmp_path):
    return tiny.save("clip-llama", tmp_path / "model")


def test_options_are_passed_on(folder):
    reader = tiny.reader("clip-llama")
    vlm = HookedVLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager", processor=reader, device="cpu"
    )
    assert vlm.dtype == torch.bfloat16
    assert vlm.hf_model.config._attn_implementation == "eager"
    assert vlm.processor is reader
    assert vlm.name == str(folder)
    assert vlm.run("Q:Greece").dtype == torch.bfloat16


def test_errors(folder, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="is not a zoo model"):
        HookedVLM.from_pretrained(tmp_path / "nothing" / "here" / "at-all")
    with pytest.raises(ModelError, match="not torch_dtype"):
        HookedVLM.from_pretrained(folder, torch_dtype=torch.float16)
    with pytest.raises(ModelError, match="not both"):
        HookedVLM.from_pretrained(folder, device="cpu", device_map="cpu")
    config = json.loads((folder / "config.json").read_text())
    (folder / "model.safetensors").unlink()  # refused before weights are looked for
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(ModelError, match="models of type 'bert'"):
        HookedVLM.from_pretrained(folder)


def test_a_type_that_transformers_does_not_know(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    with pytest.raises(ModelError, match="unheard_of"):
        HookedVLM.from_pretrained(folder)
