"""Folders of arrays by number."""

from __future__ import annotations

import numpy as np
import pytest

from vlm_lens import VLMLensError
from vlm_lens.storage.arrays import ArrayFolder, collect


def opened(folder, **identity):
    return ArrayFolder(
        folder, identity or {"run": "one"}, unit="part", holds="parts", error=VLMLensError
    )


def test_only_what_is_missing_is_made(tmp_path):
    made = []

    def make(batch):
        made.extend(batch)
        if 3 in batch and len(made) == 4:
            raise KeyboardInterrupt
        return [np.full((2, 3), number / 7) for number in batch]

    def batches(left):
        return [left[i : i + 2] for i in range(0, len(left), 2)]

    expected = np.stack([np.full((2, 3), number / 7) for number in range(5)])
    with pytest.raises(KeyboardInterrupt):
        collect(5, batches, make, unit="part", store=opened(tmp_path))
    found = collect(5, batches, make, unit="part", store=opened(tmp_path))
    assert made == [0, 1, 2, 3, 2, 3, 4]
    assert np.array_equal(found, expected) and found.dtype == expected.dtype
    again = collect(5, batches, lambda _: None, unit="part", store=opened(tmp_path))
    assert np.array_equal(again, expected)
    with pytest.raises(VLMLensError, match="another run"):
        collect(5, batches, make, unit="part", store=opened(tmp_path, run="two"))
    plain = collect(5, batches, make, unit="part")
    assert np.array_equal(plain, expected)
