"""Training: planted features are found, a killed run ends with the same numbers, memory is flat."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import tiny
import torch
from families import bench

from vlm_lens import HookedVLM, Images, RawPrompt
from vlm_lens.dictionaries import Dictionary, DictionaryError
from vlm_lens.dictionaries import train as train_module
from vlm_lens.dictionaries.train import Settings, _State
from vlm_lens.errors import PointError
from vlm_lens.sparse import SparseCoder

POINT = "blocks.0.hook_resid_post"


def prompts():
    texts = [RawPrompt(f"Q:{a}{b}\nA:") for a in "abcd" for b in "efgh"]
    pictures = [RawPrompt("Q:<image>\nA:", (bench.noise((48, 40), seed=s),)) for s in range(4)]
    return texts + pictures


def settings(**changed) -> Settings:
    usual = {"n_features": 48, "k": 3, "places": 60_000, "batch": 500, "buffer": 4000,
             "lr": 5e-3, "dead_after": 5000, "seed": 0}  # fmt: skip
    return Settings(**usual | changed)


def test_planted_features_are_found():
    draw = torch.Generator().manual_seed(0)
    planted = torch.nn.functional.normalize(torch.randn(24, 32, generator=draw), dim=-1)

    def places(n):
        on = torch.rand(n, 24, generator=draw).topk(3, dim=-1).indices
        size = torch.rand(n, 3, generator=draw) + 0.5
        return torch.zeros(n, 24).scatter(1, on, size) @ planted * 7 + 3

    asked = settings()
    state = _State.begin(places(4000), asked)
    for _ in range(asked.steps):
        state.learn(places(500), asked)
    made = state.coder(asked)
    cosine = (planted @ made["w_dec"].T).max(dim=1).values
    assert (cosine > 0.95).float().mean() > 0.9
    coder = SparseCoder(**made)
    x = places(1000)
    rest = (x - coder.decode(coder.encode(x))).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert rest < 0.1


SMALL = {"n_features": 40, "k": 4, "places": 3000, "batch": 100, "buffer": 400, "batch_size": 8,
         "progress": False}  # fmt: skip


def test_on_a_model(clip, tmp_path):
    asked = prompts()
    sae = Dictionary.train(clip, asked, POINT, **SMALL)
    assert (sae.n_features, sae.d_in, sae.point) == (40, 32, POINT)
    norms = sae.coder.w_dec.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(40))
    long = Dictionary.train(clip, asked, POINT, **SMALL | {"places": 30_000})
    first, last = (s.fidelity(clip, asked, splice=False).table for s in (sae, long))
    assert (last - first).explained_variance.dropna().gt(0).all()
    assert last.explained_variance["all"] > 0.8
    assert list(last.index) == ["image", "text", "special", "all"]
    patches = Dictionary.train(clip, asked, POINT, at=Images(), **SMALL)
    assert patches != sae


def _killed(folder, after):
    """Trains, and dies in the middle of a chunk."""
    vlm = HookedVLM.from_pretrained(folder.parent / "model")
    learn, n = _State.learn, [0]

    def counted(self, *args):
        n[0] += 1
        if n[0] == after:
            os._exit(9)
        return learn(self, *args)

    _State.learn = counted
    Dictionary.train(vlm, prompts(), POINT, save=folder, **SMALL)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_numbers(tmp_path):
    tiny.save("clip-llama", tmp_path / "model")
    vlm = HookedVLM.from_pretrained(tmp_path / "model")
    whole = Dictionary.train(vlm, prompts(), POINT, **SMALL)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_killed, args=(tmp_path / "run", 15))
    process.start()
    process.join()
    assert process.exitcode == 9
    steps = int(train_module.read_tensors(tmp_path / "run" / "state.safetensors")[0]["counts"][0])
    assert 0 < steps < 15
    resumed = Dictionary.train(vlm, prompts(), POINT, save=tmp_path / "run", **SMALL)
    for name, tensor in whole.coder.tensors.items():
        torch.testing.assert_close(resumed.coder.tensors[name], tensor)
    again = Dictionary.train(vlm, prompts(), POINT, save=tmp_path / "run", **SMALL)
    assert again == resumed  # nothing is left to be done
    with pytest.raises(DictionaryError, match="another settings"):
        Dictionary.train(vlm, prompts(), POINT, save=tmp_path / "run", **SMALL | {"k": 5})


def test_no_more_than_a_buffer_is_held(clip, monkeypatch):
    sizes = []
    cat = torch.cat

    def watched(parts, *args, **kwargs):
        made = cat(parts, *args, **kwargs)
        sizes.append(len(made))
        return made

    monkeypatch.setattr(train_module.torch, "cat", watched)
    asked = [RawPrompt(f"Q:{a}{b}\nA:") for a in "abcdefghijkl" for b in "abcdefghijkl"]
    small = SMALL | {"places": 3000, "batch_size": 4, "buffer": 150}
    Dictionary.train(clip, asked, POINT, **small)
    assert max(sizes) < 150 + 8 * 4 * 8 < len(asked) * 6  # a buffer and one more reading


def test_what_cannot_be_trained_is_refused(clip):
    asked = prompts()
    with pytest.raises(DictionaryError, match="more than the 4 features"):
        Dictionary.train(clip, asked, POINT, n_features=4, k=5)
    with pytest.raises(DictionaryError, match="at least one prompt"):
        Dictionary.train(clip, [], POINT)
    with pytest.raises(PointError):
        Dictionary.train(clip, asked, "blocks.7.hook_resid_post")
    with pytest.raises(DictionaryError, match="no place"):
        Dictionary.train(clip, asked[:3], "vision.blocks.0.hook_resid_post", **SMALL)
    with pytest.raises(DictionaryError, match="weights"):
        Dictionary.train(clip, asked, "blocks.0.attn.hook_pattern", **SMALL)
