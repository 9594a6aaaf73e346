"""Pictures that are resized once are the same pictures, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_lens import HookedVLM
from vlm_lens.reproduce import resized
from vlm_lens.storage.identity import processor_digest


def pictures() -> list[Image.Image]:
    """Noise of three sizes, two pictures of each that differ."""
    draw = np.random.default_rng(0)
    sizes = [(50, 70), (70, 50), (64, 64)] * 2
    return [Image.fromarray(draw.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in sizes]


@pytest.mark.parametrize("kind", ["llava", "idefics2", "fuyu"])
def test_prompts_are_the_same_to_the_last_bit(kind, checkpoints):
    plain = HookedVLM.from_pretrained(checkpoints[kind])
    remembering = HookedVLM.from_pretrained(checkpoints[kind])
    before = processor_digest(plain.processor)
    resized.remember_resized(remembering.processor)
    resized.remember_resized(remembering.processor)  # twice is once
    assert processor_digest(remembering.processor) == before
    for _ in range(2):  # the second time from what is kept
        for picture in pictures():
            want = plain.prompt("Q:<image>\nA:", picture).inputs
            got = remembering.prompt("Q:<image>\nA:", picture).inputs
            assert want.keys() == got.keys()
            assert all(torch.equal(want[name], got[name]) for name in want)


def test_what_is_kept_has_a_bound(checkpoints, monkeypatch):
    vlm = HookedVLM.from_pretrained(checkpoints["llava"])
    resized.remember_resized(vlm.processor)
    kept = vlm.processor.image_processor._kept
    vlm.prompt("Q:<image>\nA:", pictures()[0])
    (one,) = (array.nbytes for array in kept.values())
    monkeypatch.setattr(resized, "_MOST", 3 * one)
    for picture in pictures():
        vlm.prompt("Q:<image>\nA:", picture)
    assert sum(array.nbytes for array in kept.values()) == kept.size <= 3 * one
