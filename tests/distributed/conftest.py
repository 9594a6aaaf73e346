"""The model that the tests of several processes use."""

from __future__ import annotations

import pytest

from vlm_lens import HookedVLM


@pytest.fixture(scope="module")
def vlm() -> HookedVLM:
    return HookedVLM.from_pretrained("toy-llava")
