"""GGUF files: what transformers makes of them, kept in a cache that is whole or not there."""

from __future__ import annotations

import builtins
import json
import shutil
from collections import namedtuple

import gguf_case
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from vlm_lens import HookedVLM
from vlm_lens.errors import ModelError
from vlm_lens.model import gguf
from vlm_lens.storage.files import FileError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_LENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return gguf_case.save(tmp_path_factory.mktemp("gguf") / "small.gguf")


def test_equal_to_transformers_own_reading(file, cache):
    vlm = HookedVLM.from_pretrained(file.parent, gguf_file=file.name)
    own = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()
    reader = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    text = "A:Paris"
    ids = reader(text, return_tensors="pt").input_ids
    assert vlm.to_tokens(text) == ids[0].tolist()
    with torch.no_grad():
        assert torch.equal(vlm.run(text), own(ids).logits)
    assert torch.equal(vlm.hf_model.get_input_embeddings().weight, gguf_case.embedding(file))
    assert "Q4_1, dequantised" in repr(vlm)
    assert not hasattr(vlm.hf_model.config, "quantization_config")


def test_made_once(file, cache, monkeypatch):
    first = gguf.dequantized(file)
    assert {p.name for p in first.iterdir()} > {"model.safetensors", "config.json", "made.json"}
    monkeypatch.setattr(gguf, "_make", lambda *_: pytest.fail("made again"))
    assert gguf.dequantized(file) == first


def test_made_again_by_another_version(file, cache):
    folder = gguf.dequantized(file)
    made = json.loads((folder / "made.json").read_text())
    for part in ("transformers", "format"):
        (folder / "made.json").write_text(json.dumps(made | {part: 0}))
        (folder / "left over").touch()
        assert gguf.dequantized(file) == folder
        assert not (folder / "left over").exists()
        assert json.loads((folder / "made.json").read_text()) == made


def test_a_half_written_folder_is_never_used(file, cache, monkeypatch):
    folder = gguf.dequantized(file)
    (folder / "made.json").unlink()
    (folder / "model.safetensors").write_bytes(b"half")
    assert gguf.dequantized(file) == folder
    assert (folder / "model.safetensors").stat().st_size > 1000
    shutil.rmtree(folder)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(gguf, "_convert", killed)
        gguf.dequantized(file)
    assert [p.name for p in folder.parent.iterdir() if not p.name.endswith(".lock")] == []


def test_bad_files(file, cache, tmp_path):
    with pytest.raises(ModelError, match=r"no GGUF file 'other.gguf'; it has: small.gguf"):
        HookedVLM.from_pretrained(file.parent, gguf_file="other.gguf")
    data = file.read_bytes()
    for cut in (len(data) - 1000, len(data) // 2, 300, 30):
        short = tmp_path / f"cut-{cut}.gguf"
        short.write_bytes(data[:cut])
        with pytest.raises(ModelError, match="cut short"):
            gguf.dequantized(short)
    text = tmp_path / "text.gguf"
    text.write_text("not at all")
    with pytest.raises(ModelError, match="not a GGUF file"):
        gguf.dequantized(text)
    old = tmp_path / "old.gguf"
    old.write_bytes(data[:4] + b"\x01\0\0\0" + data[8:])
    with pytest.raises(ModelError, match="version 1"):
        gguf.dequantized(old)
    unknown = gguf_case.save(tmp_path / "unknown.gguf", architecture="whatever")
    with pytest.raises(ModelError, match="cannot convert .*unknown.gguf.*whatever"):
        gguf.dequantized(unknown)
    rest = [p for p in (cache / "gguf").iterdir() if not p.name.endswith(".lock")]
    assert rest == []


def test_no_room(file, cache, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(gguf.shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(FileError, match="Make room, or set VLM_LENS_CACHE"):
        gguf.dequantized(file)


def test_no_room_while_writing(file, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf, "_convert", full)
    with pytest.raises(FileError, match="the disk is full"):
        gguf.dequantized(file)
    assert not [p for p in (cache / "gguf").iterdir() if not p.name.endswith(".lock")]


def test_gguf_is_not_installed(file, cache, monkeypatch):
    own = builtins.__import__

    def without(name, *args, **options):
        if name == "gguf":
            raise ImportError("No module named 'gguf'")
        return own(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModelError, match="pip install gguf"):
        gguf.dequantized(file)
