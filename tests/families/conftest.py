"""What tests of every family share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from PIL import Image

from families import bench
from families.every import FAMILIES, LMS, VLMS
from vlm_lens import HookedVLM


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Callable[[str], HookedVLM]:
    """A tiny model by its name in `every`, saved and loaded once."""
    models: dict[str, HookedVLM] = {}

    def load(name: str) -> HookedVLM:
        if name not in models:
            models[name] = (VLMS | LMS)[name].load(tmp_path_factory.mktemp(name))
        return models[name]

    return load


@pytest.fixture(params=FAMILIES)
def family(request, made) -> HookedVLM:
    """A tiny model of each family."""
    return made(request.param)


@pytest.fixture
def vlm(request, made) -> HookedVLM:
    """The tiny model that a file is about, by the file's `MODEL`."""
    return made(request.module.MODEL)


@pytest.fixture
def pictures(request) -> list[Image.Image]:
    """Grey pictures of the file's `SIZES`."""
    return [bench.grey(size) for size in request.module.SIZES]
