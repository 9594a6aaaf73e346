"""Of a model over several devices, the one with the least memory says how much runs together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from vlm_lens.sweep.memory import free_bytes


@pytest.mark.parametrize(("devices", "expected"), [([0], 2 << 30), ([0, 1], 1 << 30)])
def test_the_least_of_several_cards(monkeypatch, devices, expected):
    free = {0: 8 << 30, 1: 4 << 30}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device.index], 80 << 30))
    weights = [SimpleNamespace(device=torch.device("cuda", n)) for n in devices]
    offloaded = SimpleNamespace(device=torch.device("meta"))
    model = SimpleNamespace(
        parameters=lambda: [*weights, offloaded], get_input_embeddings=lambda: None
    )
    assert free_bytes(model) == expected
