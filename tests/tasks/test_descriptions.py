"""Sentences that describe an entity without naming it or giving an answer away."""

from __future__ import annotations

import csv
import re
from importlib.resources import files
from pathlib import Path

import pytest

from vlm_lens.tasks import Row, Task, TaskError

FOLDER = Path(str(files("vlm_lens.tasks"))) / "descriptions"
COUNTS = {"country": (23, 60), "animal": (27, 33), "food": (20, 36)}


def records(domain: str) -> list[dict[str, str]]:
    with (FOLDER / f"{domain}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def of_domain(domain: str) -> list[Task]:
    return [Task.load(name) for name in Task.names() if name.startswith(f"{domain}-")]


def words(text: str) -> set[str]:
    """The words of a text, and those without an s at their end."""
    found = set(re.findall(r"[a-z]+", text.lower()))
    return found | {word.removesuffix("s") for word in found}


@pytest.mark.parametrize("domain", COUNTS)
def test_counts_and_rows(domain: str) -> None:
    told = records(domain)
    assert len({record["input"] for record in told}) == len(told)
    assert len({record["description"] for record in told}) == len(told)
    for task in of_domain(domain):
        kept = task.described()
        assert (len(kept.validation), len(kept.test)) == COUNTS[domain]
        assert {r.input: r.description for r in kept} == {
            record["input"]: record["description"] for record in told
        }


@pytest.mark.parametrize("domain", COUNTS)
def test_nothing_is_named_or_given_away(domain: str) -> None:
    for record in records(domain):
        text = record["description"]
        assert text.isascii() and text.endswith(".") and ":" not in text, text
        assert 40 <= len(text) <= 130, text
        rows = [task[record["input"]] for task in of_domain(domain)]
        taken = words(text)
        assert not taken & (words(record["input"]) - {"and"}), text
        for answer in {answer for row in rows for answer in row.answers}:
            assert not words(answer) <= taken, (text, answer)


def test_prompts_from_descriptions() -> None:
    task = Task.load("country-capital").described()
    row = task["France"]
    text = "A flag with three vertical bands, blue, white and red."
    assert task.query(row, "description").text == f"Q:{text}\nA:"
    shown = task.examples(3, "image", seed=1, query="Japan", query_modality="description")
    assert len(shown.images) == 3
    assert shown.text.endswith("Q:A white flag with a red disc in the middle.\nA:")
    sets = task.example_sets("description", seed=1, n=2)
    assert len(sets) == len(task.validation)
    assert all(len(s.images) == 0 and s.text.count("\nA:") == 3 for s in sets)


def test_rows_without_one() -> None:
    with pytest.raises(TaskError, match="'Zambia' has no description; Task.described"):
        Task.load("country-capital").query("Zambia", "description")
    plain = Task.from_rows("t", [Row("a", "b")], instruction="x:", validation=0)
    with pytest.raises(TaskError, match="no row of 't' has a description"):
        plain.described()
