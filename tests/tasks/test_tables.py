"""The shipped tables and pictures hold what they promise."""

from __future__ import annotations

import csv
from importlib.resources import files
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_lens.tasks import PAPER_TASKS, Task

ROOT = Path(str(files("vlm_lens.tasks")))
SIZES = {"country": (30, 100), "animal": (30, 64), "food": (30, 43)}


def records(name: str) -> list[dict[str, str]]:
    with (ROOT / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", Task.names())
def test_columns_and_values(name: str) -> None:
    rows = records(name)
    assert list(rows[0]) == ["input", "output", "aliases", "image", "split", "source"]
    for row in rows:
        assert row["input"] == row["input"].strip() != ""
        assert row["output"] == row["output"].strip() != ""
        assert row["output"].isascii()
        assert row["source"]
        answers = [row["output"], *filter(None, row["aliases"].split("|"))]
        assert len(set(answers)) == len(answers), row
        assert ":" not in row["input"] + "".join(answers), "a colon would move Find(':', -3)"


@pytest.mark.parametrize("domain", SIZES)
def test_sizes_and_split_are_the_same_across_a_domain(domain: str) -> None:
    names = [name for name in Task.names() if name.startswith(f"{domain}-")]
    assert len(names) == 4
    keyed = {
        name: [(row["input"], row["image"], row["split"]) for row in records(name)]
        for name in names
    }
    assert all(rows == keyed[names[0]] for rows in keyed.values())
    for name in names:
        task = Task.load(name)
        assert (len(task.validation), len(task.test)) == SIZES[domain]


def test_split_is_fixed() -> None:
    task = Task.load("country-capital")
    assert [row.input for row in task.validation[:5]] == [
        "Angola",
        "Argentina",
        "Australia",
        "Azerbaijan",
        "Bahrain",
    ]
    assert [row.input for row in Task.load("animal-young").validation[:3]] == [
        "Ant",
        "Bactrian Camel",
        "Badger",
    ]
    assert [row.input for row in Task.load("food-color").validation[:3]] == [
        "Baguette",
        "Beer",
        "Bubble Tea",
    ]


def test_no_name_is_in_two_domains() -> None:
    names = [
        row.input.lower()
        for d in ("country-capital", "animal-young", "food-kind")
        for row in Task.load(d)
    ]
    assert len(set(names)) == len(names)


def test_every_picture_is_used_and_has_the_size_of_the_paper() -> None:
    used = {row["image"] for name in PAPER_TASKS for row in records(name)}
    there = {
        path.relative_to(ROOT / "pictures").as_posix()
        for path in (ROOT / "pictures").rglob("*.png")
        if path.parent.name != "alt"
    }
    assert used == there
    for name in there:
        with Image.open(ROOT / "pictures" / name) as picture:
            assert picture.size == (224, 224), name


def test_pictures_are_small_on_disk() -> None:
    assert sum(p.stat().st_size for p in (ROOT / "pictures").rglob("*.png")) < 4 * 2**20


def test_flags_can_be_told_apart() -> None:
    small = {
        row.input: np.asarray(row.image.convert("RGB").resize((32, 32)), dtype=np.float64) / 255
        for row in Task.load("country-capital")
    }
    near = [
        (a, b)
        for a, b in combinations(small, 2)
        if np.sqrt(((small[a] - small[b]) ** 2).mean()) < 0.08
    ]
    assert near == []


@pytest.mark.parametrize(
    ("name", "given", "output"),
    [
        ("country-capital", "South Korea", "Seoul"),
        ("country-capital", "Cameroon", "Yaounde"),
        ("country-capital", "Switzerland", "Bern"),
        ("country-currency", "Italy", "Euro"),
        ("country-currency", "Peru", "Sol"),
        ("animal-latin", "Gray Wolf", "Canis lupus"),
        ("animal-latin", "Killer Whale", "Orcinus orca"),
        ("animal-young", "Bottlenose Dolphin", "calf"),
        ("food-color", "Corn", "yellow"),
        ("food-flavor", "Strawberry", "sweet"),
        ("country-continent", "Peru", "South America"),
        ("country-language", "Peru", "Spanish"),
        ("animal-class", "Gray Wolf", "mammal"),
        ("animal-group", "Gray Wolf", "pack"),
        ("food-kind", "Corn", "vegetable"),
        ("food-texture", "Strawberry", "juicy"),
    ],
)
def test_rows_everyone_knows(name: str, given: str, output: str) -> None:
    assert Task.load(name)[given].output == output


def test_where_sources_differ_there_are_aliases() -> None:
    task = Task.load("country-capital")
    assert "Kiev" in task["Ukraine"].answers
    assert "Brasília" in task["Brazil"].answers
    assert "Cape Town" in task["South Africa"].answers
