"""Tiny models of the families, each built once a module."""

from __future__ import annotations

from functools import cache

import pytest
from families.every import ENCODER_DECODERS, VLMS


@pytest.fixture(scope="module")
def load_family(tmp_path_factory):
    """A family's tiny model, by its name in `families.every`."""
    families = VLMS | ENCODER_DECODERS
    return cache(lambda name: families[name].load(tmp_path_factory.mktemp(name)))
