"""Models by folder, and what is said of names that are none."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tiny
import torch

from vlm_lens import HookedVLM
from vlm_lens.errors import ModelError
from vlm_lens.model.loading import read_config


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


def test_offline_a_short_name_says_which_id_it_stands_for(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, repository in (
        ("idefics2-8b", "HuggingFaceM4/idefics2-8b"),
        ("llava-1.5-7b", "llava-hf/llava-1.5-7b-hf"),
    ):
        with pytest.raises(ModelError, match=f"'{name}' stands for '{repository}', which could"):
            HookedVLM.from_pretrained(name, cache_dir=str(tmp_path))


def test_a_type_that_transformers_does_not_know(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    with pytest.raises(ModelError, match="unheard_of"):
        HookedVLM.from_pretrained(folder)


_CODE = """
import pathlib
pathlib.Path({marker!r}).touch()
from transformers import {base}
class Own({base}):
    pass
"""
# which file of a folder names the code, under what key, and what the code derives from
_OWN_CODE = {
    "a config": ("config.json", "AutoConfig", "LlavaConfig"),
    "a model": ("config.json", "AutoModelForImageTextToText", "LlavaForConditionalGeneration"),
    "a processor": ("processor_config.json", "AutoProcessor", "LlavaProcessor"),
    "a tokenizer": ("tokenizer_config.json", "AutoTokenizer", "PreTrainedTokenizerFast"),
    "a picture processor": ("processor_config.json", "AutoImageProcessor", "CLIPImageProcessor"),
}
_ASKED = """
import sys
from vlm_lens import HookedVLM
from vlm_lens.model.loading import read_config
from vlm_lens.reproduce.plan import make_plan
for folder in sys.argv[1:]:
    for load in (HookedVLM.from_pretrained, lambda f: read_config(f, f),
                 lambda f: make_plan(["table2"], [f], out=f + "-out")):
        try:
            load(folder)
            print("loaded without it")
        except ValueError as error:
            print(type(error).__name__, repr(str(error)))
"""


def _with_own_code(folder, kind, unknown, marker):
    """Adds code to a folder; `unknown` leaves transformers no class of its own to fall back on."""
    name, key, base = _OWN_CODE[kind]
    (folder / "own.py").write_text(_CODE.format(marker=str(marker), base=base))
    path = folder / name
    config = json.loads(path.read_text()) if path.exists() else {}
    config["auto_map"] = {key: [None, "own.Own"] if key == "AutoTokenizer" else "own.Own"}
    if unknown:
        for field in ("processor_class", "tokenizer_class", "image_processor_type"):
            config[field] = "Own"
        if name == "config.json":
            config["model_type"] = "own"
    path.write_text(json.dumps(config))


@pytest.mark.slow
def test_code_of_a_folder_is_not_run_though_the_terminal_says_yes(tmp_path):
    """In one process, by each door: loading, the config alone, and what is planned."""
    cases = [(kind, unknown) for kind in _OWN_CODE for unknown in (False, True)]
    folders = []
    for i, (kind, unknown) in enumerate(cases):
        folders.append(tiny.save("clip-llama", tmp_path / f"m{i}"))
        _with_own_code(folders[-1], kind, unknown, tmp_path / f"ran-{i}")
    done = subprocess.run(
        [sys.executable, "-c", _ASKED, *map(str, folders)], input="y\n" * 99,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("ran-*")) and "Do you wish" not in done.stdout
    said = done.stdout.splitlines()
    assert len(said) == 3 * len(cases)
    assert all(line.startswith(("loaded without", "ModelError")) for line in said), said
    for case, lines in zip(cases, zip(*[iter(said)] * 3, strict=True), strict=True):
        if case == ("a config", True):
            assert all("pass trust_remote_code=True" in line for line in lines)


def test_code_of_a_folder_is_run_where_it_is_asked_for(folder, tmp_path):
    marker = tmp_path / "ran"
    (folder / "own.py").write_text(_CODE.format(marker=str(marker), base="LlavaConfig"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "own.Own"}, "model_type": "own"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="has not been run"):
        read_config(folder, str(folder))
    assert not marker.exists()
    read_config(folder, str(folder), trust_remote_code=True)
    assert marker.exists()
