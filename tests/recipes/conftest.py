"""The shipped toy model, loaded once."""

from __future__ import annotations

import pytest

from recipes.plain import Plain
from vlm_lens import HookedVLM


@pytest.fixture(scope="session")
def toy() -> HookedVLM:
    """The toy model of the zoo."""
    return HookedVLM.from_pretrained("toy-llava")


@pytest.fixture(scope="session")
def plain() -> Plain:
    """The same model through plain transformers and plain hooks."""
    return Plain("toy-llava")


@pytest.fixture(scope="module")
def result(toy, request):
    """The result of the recipe that a file calls RECIPE."""
    return request.module.RECIPE.run(toy, progress=False)
