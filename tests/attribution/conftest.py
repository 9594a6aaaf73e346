"""Tiny models of the families, each built once a module."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from families.every import ENCODER_DECODERS, VLMS

from vlm_lens import HookedVLM


@pytest.fixture(scope="module")
def load_family(tmp_path_factory) -> Callable[[str], HookedVLM]:
    """A family's tiny model, by its name in `families.every`."""
    made: dict[str, HookedVLM] = {}

    def load(name: str) -> HookedVLM:
        if name not in made:
            made[name] = (VLMS | ENCODER_DECODERS)[name].load(tmp_path_factory.mktemp(name))
        return made[name]

    return load
