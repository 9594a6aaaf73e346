"""What tests of every family share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from families.every import BUILDERS
from vlm_lens import HookedVLM


@pytest.fixture(scope="module", params=BUILDERS)
def family(request, tmp_path_factory) -> Iterator[HookedVLM]:
    """A tiny model of each family, saved and loaded."""
    folder = BUILDERS[request.param].save(tmp_path_factory.mktemp(request.param))
    yield HookedVLM.from_pretrained(folder)
