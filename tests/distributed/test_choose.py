"""What `on=` may be, and what is said of the rest."""

from __future__ import annotations

import sys
import time

import pytest
import torch

from vlm_lens import ActivationPatch, HookedVLM, Last, VLMLensError
from vlm_lens.distributed import Loky, Ray, opened
from vlm_lens.distributed.choose import as_place
from vlm_lens.distributed.source import named, sent

PATCH = ActivationPatch("blocks.0.hook_resid_post", at=Last(), value=1.0)


def test_names_addresses_and_settings():
    assert as_place("loky") == Loky() and as_place("ray") == Ray()
    assert as_place("ray://head:10001") == Ray("ray://head:10001")
    assert as_place(Ray(num_gpus=0.5)) == Ray(num_gpus=0.5)
    for on in ("local", 3, Loky):
        with pytest.raises(VLMLensError, match="on= is 'loky', 'ray', the address"):
            as_place(on)
    for wrong in (lambda: Loky(0), lambda: Ray(workers=0), lambda: Ray(num_cpus=0)):
        with pytest.raises(VLMLensError, match="workers is|A worker has"):
            wrong()


def test_bad_places_are_refused_quickly_and_before_any_run(load, no_forward, monkeypatch):
    clip = load("clip-llama")
    no_forward(clip)
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    started = time.monotonic()
    for on, match in (
        ("ray://127.0.0.1:9", "No Ray cluster answers at ray://127.0.0.1:9"),
        ("127.0.0.1:9", "No Ray cluster answers"),
        ("head:", "no address of a Ray cluster"),
        ("threads", "on= is"),
    ):
        with pytest.raises(VLMLensError, match=match):
            clip.sweep(clip.prompt("A:"), [PATCH], on=on, progress=False)
    assert time.monotonic() - started < 10
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(VLMLensError, match=r"pip install 'vlm-lens\[ray\]'"):
        clip.sweep(clip.prompt("A:"), [PATCH], on="ray", progress=False)


def test_models_that_cannot_be_sent(load):
    clip = load("clip-llama")
    assert named(clip).make().hf_model is not clip.hf_model
    own = HookedVLM(clip.hf_model, clip.processor)
    with pytest.raises(VLMLensError, match="was not loaded by HookedVLM.from_pretrained"):
        named(own)
    with torch.device("meta"):
        empty = HookedVLM(type(clip.hf_model)(clip.hf_model.config), clip.processor)
    with pytest.raises(VLMLensError, match=r"is offloaded.*Ray\(load=True\)"):
        sent(empty)


def test_a_model_changed_since_it_was_loaded_is_not_loaded_again(load):
    clip = HookedVLM.from_pretrained("toy-llava")
    with torch.no_grad():
        next(clip.hf_model.parameters()).mul_(2)
    with pytest.raises(VLMLensError, match="its weights differ"):
        named(clip).make()


def test_open_functions_are_refused_and_workers_of_another_model(load):
    clip, other = load("clip-llama"), load("siglip-mistral")
    with Loky(1).open(clip) as workers:
        with pytest.raises(VLMLensError, match="another model object"), opened(workers, other):
            pass
        with (
            clip.hooks([("hook_embed", lambda x, hook: x)]),
            pytest.raises(VLMLensError, match="Functions are open around this work"),
        ):
            clip.sweep(clip.prompt("A:"), [PATCH], on=workers, progress=False)
