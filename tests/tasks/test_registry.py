"""Names and instructions, against the strings of the paper."""

from __future__ import annotations

import pytest

from vlm_lens.tasks import EXTRA_TASKS, PAPER_TASKS, TaskError
from vlm_lens.tasks.registry import SPECS, spec

PAPER = {
    "country-capital": "The capital city of the country:",
    "country-currency": "The last word of the official currency of the country:",
    "animal-latin": "The scientific name of the animal's species in latin:",
    "animal-young": "The term for the baby of the animal:",
    "food-color": "The color of the food:",
    "food-flavor": "The flavor descriptor of the food:",
}


def test_instructions_of_the_paper() -> None:
    assert {name: SPECS[name].instruction for name in PAPER_TASKS} == PAPER
    assert tuple(PAPER) == PAPER_TASKS


def test_task_words_of_the_paper() -> None:
    words = [SPECS[name].task_word for name in PAPER_TASKS]
    assert words == ["capital", "currency", "species", "baby", "color", "flavor"]


def test_extra_tasks_are_put_in_the_same_manner() -> None:
    assert len(EXTRA_TASKS) == 6
    for name, known in SPECS.items():
        assert known.name == name
        assert name.startswith(f"{known.domain}-")
        assert known.instruction.startswith("The ")
        assert known.instruction.endswith(f" {known.domain}:") or name == "animal-latin"


def test_unknown_name_says_what_there_is() -> None:
    with pytest.raises(TaskError, match="Did you mean 'country-capital'.*Task.from_csv"):
        spec("country-capitol")
