"""Whether two devices say the same, within the rounding of float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-4  # of the largest number


def same(near: Any, far: Any, what: str = "") -> None:
    """Two tensors, arrays or Scores are alike, and so are those in mappings and sequences.

    Args:
        near: What the CPU gives.
        far: What the device gives, wherever it lies.
        what: What they are, for the message.
    """
    if isinstance(near, dict):
        assert list(near) == list(far), what
        for key, value in near.items():
            same(value, far[key], f"{what} {key}")
        return
    if isinstance(near, (list, tuple)):
        assert len(near) == len(far), what
        for number, (one, other) in enumerate(zip(near, far, strict=True)):
            same(one, other, f"{what} {number}")
        return
    one, other = (_plain(x) for x in (near, far))
    assert one.shape == other.shape, what
    usual = np.abs(one) < 1e30  # what a mask bars, and where it does
    assert np.array_equal(usual, np.abs(other) < 1e30), what
    one, other = one[usual], other[usual]
    scale = np.abs(one).max(initial=1e-6)
    off = np.abs(one - other).max(initial=0) / scale
    assert off < TOLERANCE, f"{what}: off by {off:.2g}"


def _plain(given: Any) -> np.ndarray:
    if isinstance(given, Tensor):
        given = given.detach().cpu().double()
    elif hasattr(given, "values") and hasattr(given.values, "to_numpy"):
        given = given.values.to_numpy()
    found = np.asarray(given, dtype=np.float64)
    return np.nan_to_num(found, nan=-7.0, posinf=np.inf, neginf=-np.inf)


def moved(tensors: dict[str, Tensor], device: Any) -> dict[str, Tensor]:
    """Tensors on another device."""
    return {name: tensor.to(torch.device(device)) for name, tensor in tensors.items()}
