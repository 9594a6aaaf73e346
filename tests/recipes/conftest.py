"""The shipped toy model, loaded once."""

from __future__ import annotations

import pytest

from vlm_lens import HookedVLM


@pytest.fixture(scope="session")
def toy() -> HookedVLM:
    """The toy model of the zoo."""
    return HookedVLM.from_pretrained("toy-llava")
