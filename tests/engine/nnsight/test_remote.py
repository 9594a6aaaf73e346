"""Runs in a service equal runs here, over a stand-in that runs the request in another process."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import nnsight
import pytest
import tiny
import torch
from cloudpickle import cloudpickle

from engine.nnsight.service import Service
from vlm_lens import (
    AttentionKnockout,
    Find,
    Generated,
    Images,
    Last,
    Scale,
    Steer,
    TaskVector,
)
from vlm_lens.errors import InterventionError, ModelError

pytestmark = pytest.mark.slow  # the worker loads torch and transformers

KEY = "a-key-that-nobody-may-see"
close = torch.testing.assert_close  # another process, which may have other numbers of threads


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with Service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def remote(service, monkeypatch):
    """The environment of a user who has a key."""
    monkeypatch.setenv("NDIF_HOST", service.address)
    monkeypatch.setenv("NDIF_API_KEY", KEY)
    return service


@pytest.fixture
def prompt(clip):
    pictures = [tiny.noise_picture(n, (40, 30)) for n in range(2)]
    return clip.prompt(["Q:<image>\nA:", "Q: what? <image>A:"], [pictures[:1], pictures[1:]])


def edits(vlm):
    vector = torch.randn(vlm.cfg.d_model, generator=torch.Generator().manual_seed(0))
    return [
        Steer("blocks.0.hook_resid_post", Find("A"), vector, 2.0),
        Scale("vision.blocks.0.hook_mlp_out", Images(), -1.0),
        Scale("blocks.1.hook_resid_mid", Last(), 0.5),
        AttentionKnockout(queries=Last(), keys=Images(), layers=[1]),
    ]


def test_what_is_read_and_changed_there_is_what_it_is_here(clip, prompt, remote):
    clip.run(prompt)
    hooks, before = tiny.hook_state(clip.hf_model), [set(vars(m)) for m in clip.hf_model.modules()]
    for changes in ((), edits(clip)):
        for positions, names in ((Last(), "*"), (None, ["projector.hook_out", "blocks.*.hook_*"])):
            asked = {"names_filter": names, "interventions": changes}
            if positions is not None:
                asked |= {"positions": positions, "names_filter": "blocks.*"}
            logits, cache = clip.run_with_cache(prompt, **asked)
            there, sent = clip.run_with_cache(prompt, **asked, engine="ndif")
            close(there, logits)
            assert set(sent) == set(cache)
            for name in cache:
                close(sent[name], cache[name])
    assert tiny.hook_state(clip.hf_model) == hooks
    assert [set(vars(m)) for m in clip.hf_model.modules()] == before


def test_generation_and_functions_there(clip, prompt, remote):
    vector = torch.full((clip.cfg.d_model,), 0.3)
    asked = {
        "interventions": Steer("blocks.1.hook_resid_post", Last() + Generated(), vector, 5.0),
        "names_filter": ["blocks.0.attn.hook_pattern", "blocks.1.hook_resid_post"],
        "max_new_tokens": 3, "scores": True, "eos_token_id": None,
    }  # fmt: skip
    here, there = clip.generate(prompt, **asked), clip.generate(prompt, **asked, engine="ndif")
    assert torch.equal(there.tokens, here.tokens) and there.text == here.text
    close(there.scores, here.scores)
    for name in here.cache:
        close(there.cache[name], here.cache[name])
    factor = 3.0

    def scaled(x, hook):
        return x * factor if hook.layer() == 1 else None

    hooks = [("blocks.*.attn.hook_q", scaled)]
    expected = clip.run_with_hooks(prompt, fwd_hooks=hooks)
    close(clip.run_with_hooks(prompt, fwd_hooks=hooks, engine="ndif"), expected)


def test_a_block_runs_there(clip, remote):
    """In a process of its own: here classes are wrapped in checks of types, which do not travel."""
    case = Path(__file__).with_name("block_case.py")
    command = [sys.executable, str(case), clip.hf_model.name_or_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nnsight_refuses_a_batch_of_pictures_and_a_prompt_of_rows_is_none(clip, prompt, remote):
    wrapped = nnsight.NNsight(copy.deepcopy(clip.hf_model))
    rows = [clip.prompt([t], [list(p)]) for t, p in zip(prompt.texts, prompt.images, strict=True)]
    with pytest.raises(NotImplementedError), wrapped.trace() as tracer:
        for row in rows:
            with tracer.invoke(**row.inputs):
                wrapped.lm_head.output.save()
    sent = len(remote.requests)
    close(clip.run(prompt, engine="ndif"), clip.run(prompt))
    assert len(remote.requests) == sent + 1


def test_the_key_is_in_a_header_and_nowhere_else(clip, prompt, remote, tmp_path):
    sent = len(remote.requests)
    logits, cache = clip.run_with_cache(prompt, positions=Last(), engine="ndif")
    envelope, headers, blob = remote.requests[sent]
    assert headers["ndif-api-key"] == KEY
    assert KEY.encode() not in blob and KEY not in str(envelope)
    vector = TaskVector.from_cache(cache, at=Last()) if hasattr(TaskVector, "from_cache") else None
    cache.save(tmp_path / "cache")
    written = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    assert written and all(KEY.encode() not in content for content in written)
    for shown in (clip, cache, vector, cache.source, vars(clip)):
        assert KEY not in repr(shown)
    assert not any("vlm_lens" in name for name in cloudpickle._PICKLE_BY_VALUE_MODULES)


def test_what_fails_is_said(clip, prompt, remote, monkeypatch):
    with pytest.raises(InterventionError, match="Gradients do not come home"):
        clip.run(prompt, grad=True, engine="ndif")
    with pytest.raises(ModelError, match="failed: ZeroDivisionError"):
        clip.run_with_hooks(
            prompt, fwd_hooks=[("hook_embed", lambda x, hook: 1 / 0)], engine="ndif"
        )
    close(clip.run(prompt, engine="ndif"), clip.run(prompt))  # it goes on
    monkeypatch.setenv("NDIF_HOST", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="cannot be reached"):
        clip.run(prompt, engine="ndif")
    monkeypatch.delenv("NDIF_HOST")
    monkeypatch.delenv("NDIF_API_KEY")
    with pytest.raises(ModelError, match="set NDIF_API_KEY"):
        clip.run(prompt, engine="ndif")
