"""The shipped toy model, loaded once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vlm_lens import HookedVLM
from vlm_lens.tasks import Task


@pytest.fixture(scope="session")
def toy() -> HookedVLM:
    """The toy model of the zoo."""
    return HookedVLM.from_pretrained("toy-llava")


@pytest.fixture(scope="session")
def small():
    """A shipped task with few rows, so that an experiment takes seconds: `small("food-color")`."""

    def made(name: str, rows: int = 8) -> Task:
        task = Task.load(name)
        return replace(task, validation=task.validation[:rows], test=task.test[:rows])

    return made
