"""Work that tests give to several processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

from vlm_lens import HookedVLM
from vlm_lens.sweep import Grid


def grid(vlm: HookedVLM, n_vectors: int) -> Grid:
    """Vectors at three positions of each block."""
    generator = torch.Generator().manual_seed(0)
    vectors = {str(i): torch.randn(vlm.cfg.d_model, generator=generator) for i in range(n_vectors)}
    return Grid("blocks.*.hook_resid_post", at=[-1, -2, -3], vectors=vectors)


def dying_measure(folder: Path, after: int):
    """A measure that writes down its calls, and once, after some of them, kills its process.

    A function of a function is sent by value, so that workers need not import the tests.
    """

    def measure(logits):
        with (folder / "calls").open("a") as file:
            file.write(".")
        died = folder / "died"
        if (folder / "calls").stat().st_size >= after and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return float(logits.amax())

    return measure


def assert_same(found, expected, *, close: float = 1e-5) -> None:
    """Records of the same variants in the same order, and numbers up to rounding."""
    assert len(found) == len(expected) and found.label_names == expected.label_names
    for one, other in zip(found.records, expected.records, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if isinstance(value, float):
                assert abs(value - other[name]) <= close * max(1, abs(value))
            else:
                assert value == other[name]
