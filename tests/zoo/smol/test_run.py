"""The command that trains and writes the folder."""

from __future__ import annotations

from argparse import Namespace

import pytest

from vlm_lens.errors import ModelError
from vlm_lens.zoo.smol import run as smol
from vlm_lens.zoo.smol.recipe import Recipe


def test_the_base_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_LENS_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="make real"):
        smol.base_folder()
    folder = tmp_path / "gguf" / "SmolLM2-135M-Instruct.Q4_1-0123"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    assert smol.base_folder() == folder
    with pytest.raises(ModelError, match="--base"):
        smol.base_folder(tmp_path)


def test_scaled():
    short = Recipe().scaled(130)
    assert (short.tower_steps, short.steps, short.evaluate_every) == (50, 80, 40)
    assert Recipe.of({**vars(short), "kinds": list(short.kinds)}) == short


@pytest.mark.slow
def test_it_trains_and_writes(base, tokenizer, world, tmp_path, monkeypatch):
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    small = Recipe(
        tower_steps=1, tower_views=4, steps=1, names=2, captions=2, facts=3, samples=2, rank=2,
        own_samples=4, evaluate_every=1,
    )  # fmt: skip
    monkeypatch.setattr(smol, "Recipe", lambda: small)
    args = Namespace(
        base=tmp_path / "base", seed=3, steps=None, work=tmp_path / "work", device="cpu",
        tables=world.pictures.parent, minutes=None, out=tmp_path / "out",
    )  # fmt: skip
    smol.run(args)
    files = {path.name for path in (tmp_path / "out" / "smol-llava").iterdir()}
    assert files >= {
        "config.json", "seeing.safetensors", "adapter_model.safetensors", "recipe.json",
        "train_log.jsonl", "tokenizer.json",
    }  # fmt: skip
