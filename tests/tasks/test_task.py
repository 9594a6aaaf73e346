"""Tasks and the prompts built from them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_lens.prompts.template import Template
from vlm_lens.tasks import EXTRA_TASKS, PAPER_TASKS, Row, Task, TaskError, draw_examples


@pytest.fixture
def capital() -> Task:
    return Task.load("country-capital")


def pair(row: Row) -> str:
    return f"Q:{row.input}\nA:{row.output}\n\n"


def test_names_begin_with_the_papers() -> None:
    assert Task.names() == PAPER_TASKS + EXTRA_TASKS
    assert PAPER_TASKS[0] == "country-capital"


def test_load(capital: Task) -> None:
    assert capital is Task.load("country-capital")
    assert (capital.domain, capital.task_word) == ("country", "capital")
    assert capital.instruction == "The capital city of the country:"
    assert len(capital) == 130 == len(list(capital))
    with pytest.raises(dataclasses.FrozenInstanceError):
        capital.name = "x"


def test_rows_by_split_and_by_name(capital: Task) -> None:
    assert capital.rows("validation") == capital.validation
    assert capital.rows("test") == capital.test
    assert capital["Peru"].output == "Lima"
    with pytest.raises(TaskError, match="'validation' or 'test', not 'val'"):
        capital.rows("val")
    with pytest.raises(TaskError, match="has no row 'Frence'. Did you mean 'France'"):
        capital["Frence"]


def test_query(capital: Task) -> None:
    assert capital.query("France", "text").text == "Q:France\nA:"
    prompt = capital.query(capital["France"], "image")
    assert prompt.text == "Q:<image>\nA:"
    assert prompt.images == (capital["France"].image,)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_examples_are_full_and_the_query_open(capital: Task, n: int) -> None:
    prompt = capital.examples(n, "text", seed=3)
    order = np.random.RandomState(3).permutation(30)
    rows = capital.validation
    expected = "".join(pair(rows[i]) for i in order[:n]) + f"Q:{rows[order[n]].input}\nA:"
    assert prompt.text == expected
    assert prompt == capital.examples(n, seed=3)


def test_examples_with_a_query_of_the_same_split(capital: Task) -> None:
    for seed in range(20):
        text = capital.examples(29, seed=seed, query="France").text
        assert text.count("Q:France\n") == 1
        assert text.endswith("Q:France\nA:")


def test_examples_with_a_query_of_the_other_split_and_modality(capital: Task) -> None:
    prompt = capital.examples(2, "text", seed=0, query=capital["Japan"], query_modality="image")
    assert prompt.text.endswith("\n\nQ:<image>\nA:")
    assert prompt.images == (capital["Japan"].image,)
    assert capital["Japan"] in capital.test
    shown = capital.examples(2, "image", seed=0, query="Japan", query_modality="text")
    assert shown.text.count("<image>") == 2 == len(shown.images)
    assert shown.text.endswith("Q:Japan\nA:")


def test_examples_from_test(capital: Task) -> None:
    text = capital.examples(1, seed=0, split="test").text
    assert text.split("\n")[0].removeprefix("Q:") in {row.input for row in capital.test}


def test_too_many_examples(capital: Task) -> None:
    with pytest.raises(TaskError, match="only 30 are left"):
        capital.examples(30, seed=0)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_example_sets_are_the_papers(capital: Task, seed: int) -> None:
    rows = capital.validation
    np.random.seed(seed)
    expected = []
    for query in range(30):
        drawn = np.random.permutation([i for i in range(30) if i != query])[:5]
        expected.append("".join(pair(rows[i]) for i in drawn) + f"Q:{rows[query].input}\nA:")
    assert [prompt.text for prompt in capital.example_sets(seed=seed)] == expected


def test_example_sets_with_picture_queries_and_from_test(capital: Task) -> None:
    sets = capital.example_sets("text", seed=1, target_modality="image", split="test", n=2)
    assert len(sets) == 100
    for prompt, row, drawn in zip(sets, capital.test, draw_examples(100, 2, seed=1), strict=True):
        examples = "".join(pair(capital.test[i]) for i in drawn)
        assert prompt.text == f"{examples}Q:<image>\nA:"
        assert prompt.images == (row.image,)
    pictures = capital.example_sets("image", seed=1, n=2)[0]
    assert len(pictures.images) == 3


def test_shuffled_keeps_rows_and_answers(capital: Task) -> None:
    control = capital.shuffled(0)
    assert control == capital.shuffled(0) != capital.shuffled(1)
    for split in ("validation", "test"):
        before, after = capital.rows(split), control.rows(split)
        assert [row.input for row in after] == [row.input for row in before]
        assert [row.picture for row in after] == [row.picture for row in before]
        assert sorted(row.answers for row in after) == sorted(row.answers for row in before)
        assert sum(a == b for a, b in zip(before, after, strict=True)) < 5
    assert control.name == "country-capital-shuffled-0"
    assert control.instruction == capital.instruction


def test_from_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 20)).save(path)
    rows = [
        ("Leek", path, "green"),
        ("Corn", Image.new("RGB", (4, 4)), ("yellow", "golden")),
        ("Salt", None, "white"),
        Row("Lime", "green"),
    ]
    task = Task.from_rows("color", rows, instruction="The color:", validation=2, width=15)
    assert [row.input for row in task.test] == ["Salt", "Lime"]
    assert task["Corn"].aliases == ("golden",)
    assert task["Leek"].image.size == (15, 10)
    with pytest.raises(TaskError, match="'Salt' has no picture"):
        task.query("Salt", "image")


def test_from_rows_errors() -> None:
    with pytest.raises(TaskError, match="validation=30, but 'x' has 1 rows"):
        Task.from_rows("x", [("a", None, "b")], instruction="x:")
    with pytest.raises(TaskError, match=r"row 1 of 'x' is no \(input, picture, output\)"):
        Task.from_rows("x", [("a", None, "b"), ("c", "d")], instruction="x:", validation=1)
    with pytest.raises(TaskError, match="has no rows"):
        Task.from_rows("x", [], instruction="x:", validation=0)
    with pytest.raises(TaskError, match="same input: 'a'"):
        Task.from_rows("x", [("a", None, "b")] * 2, instruction="x:", validation=1)


def test_rows_are_left_for_test_or_it_is_said_at_once(tmp_path: Path) -> None:
    rows = [(f"n{i}", None, "x") for i in range(30)]
    with pytest.raises(TaskError, match="30 rows, all of them for validation by validation=30"):
        Task.from_rows("x", rows, instruction="x:")
    path = tmp_path / "few.csv"
    path.write_text("input,output\n" + "".join(f"{name},{out}\n" for name, _, out in rows[:8]))
    with pytest.raises(TaskError, match="validation=8 leaves 8 for validation and 0 for the test"):
        Task.from_csv(path, instruction="x:", validation=8)
    assert len(Task.from_csv(path, instruction="x:", validation=3).test) == 5
    assert len(Task.from_csv(path, instruction="x:").test) == 4  # half of a small file


def test_own_template(capital: Task) -> None:
    chat = dataclasses.replace(capital, template=Template("{input}={output};", "{input}="))
    assert chat.query("Peru", "text").text == "Peru="


def test_repr() -> None:
    task = Task.load("food-color")
    assert repr(task).startswith("Task('food-color': 30 validation + 43 test rows, e.g. ")


def test_tables_are_imported_without_pandas() -> None:
    code = (
        "import sys; from vlm_lens.tasks import Task; Task.load('food-color'); "
        "assert not {'pandas', 'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_fewer_keeps_the_same_rows_for_tasks_of_a_domain() -> None:
    capital, currency = (Task.load(f"country-{what}").fewer(7) for what in ("capital", "currency"))
    whole = [row.input for row in Task.load("country-capital").test]
    kept = [row.input for row in capital.test]
    assert kept == [row.input for row in currency.test] == [whole[i * 100 // 7] for i in range(7)]
    assert len(capital.validation) == 30 and capital.name == "country-capital"
    assert capital.fewer(50) == capital
    with pytest.raises(TaskError, match="at least one"):
        capital.fewer(0)
