"""A worker loads a model on GPUs of its own, which it counts from 0."""

from __future__ import annotations

import pytest
import torch

from vlm_lens import HookedVLM, VLMLensError
from vlm_lens.distributed import Ray, on_ray
from vlm_lens.distributed.packed import pack, unpack
from vlm_lens.distributed.source import gpus_of, named


@pytest.fixture
def loaded(load, monkeypatch):
    """A model that says of itself that it was loaded so, and, if asked, that it lies on a GPU."""

    def make(*, on: str = "cpu", **options):
        vlm = HookedVLM(load("clip-llama").hf_model, load("clip-llama").processor)
        vlm.__dict__["loaded_as"] = "toy-llava", {"device": None, **options}
        monkeypatch.setattr(HookedVLM, "device", torch.device(on))
        if isinstance(options.get("device_map"), dict):
            monkeypatch.setattr(vlm.hf_model, "hf_device_map", options["device_map"], raising=False)
        return vlm

    return make


@pytest.mark.parametrize(
    ("on", "options", "expected", "n_gpus"),
    [
        ("cpu", {}, {"device": None}, 0),
        ("cuda:3", {"device": "cuda:3"}, {"device": "cuda"}, 1),
        ("cuda:3", {}, {"device": "cuda"}, 1),  # moved after it was loaded
        ("cpu", {"device": "cuda:3"}, {"device": "cpu"}, 0),
        ("cuda:2", {"device_map": "auto"}, {"device_map": "auto"}, 1),
        ("cuda:2", {"device_map": "cuda:2"}, {"device_map": "cuda:0"}, 1),
        (
            "cuda:1",
            {"device_map": {"a": 1, "b": "cuda:3", "c": "cpu", "d": torch.device("cuda:1")}},
            {"device_map": {"a": "cuda:0", "b": "cuda:1", "c": "cpu", "d": "cuda:0"}},
            2,
        ),
        (
            "cuda:1",
            {"device_map": "auto", "max_memory": {1: "9GB", 3: "8GB", "cpu": "1GB"}},
            {"device_map": "auto", "max_memory": {0: "9GB", 1: "8GB", "cpu": "1GB"}},
            1,
        ),
    ],
)  # fmt: skip
def test_numbers_of_gpus_are_the_workers_own(loaded, on, options, expected, n_gpus):
    vlm = loaded(on=on, **options)
    assert named(vlm).options == {"device": None} | expected
    assert gpus_of(vlm) == n_gpus


def test_a_device_that_this_process_does_not_see_is_its_first():
    found = unpack(pack([torch.device("cuda", 3), torch.device("cpu")], "they"))
    assert found == [torch.device("cuda", 0), torch.device("cpu")]


def test_what_a_worker_has_too_few_of_is_said(loaded, monkeypatch):
    monkeypatch.setattr(on_ray, "connect", lambda address: None)
    vlm = loaded(on="cuda:1", device_map={"model": 1, "lm_head": 3})
    with pytest.raises(VLMLensError, match=r"names 2 GPUs.*Ray\(num_gpus=2, load=True\)"):
        Ray(num_gpus=1, load=True).open(vlm)
    with pytest.raises(VLMLensError, match=r"num_gpus=1.5.*whole GPUs, or a share of one"):
        Ray(num_gpus=1.5)
