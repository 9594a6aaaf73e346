"""Tables and folders of one's own data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vlm_lens.tasks import Task, TaskError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as the authors publish it, with one task of three rows."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    for name in ("peru", "fiji", "mali"):
        Image.new("RGB", (448, 300), "red").save(tmp_path / "images" / f"{name}.png")
    val = [
        {"input": "Peru", "image": "images/peru.png", "output": "Lima"},
        {"input": "Fiji", "image": "images/fiji.png", "output": "Suva"},
    ]
    test = {"data": [{"input": "Mali", "image": "images/mali.png", "output": "Bamako"}]}
    annotations = tmp_path / "annotations"
    (annotations / "country-capital_val.json").write_text(json.dumps(val))
    (annotations / "country-capital_test.json").write_text(json.dumps(test))
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_folder_of_the_authors(folder: Path) -> None:
    task = Task.from_folder(folder)
    assert task == Task.from_folder(str(folder), "country-capital")
    assert (task.name, task.domain, task.task_word) == ("country-capital", "country", "capital")
    assert task.instruction == "The capital city of the country:"
    assert [row.input for row in task.validation] == ["Peru", "Fiji"]
    assert task.test[0].output == "Bamako"
    assert task["Peru"].image.size == (224, 150), "width 224, int(224 / 448 * 300) high"
    assert Task.from_folder(folder, width=None)["Peru"].image.size == (448, 300)


def test_folder_with_an_unknown_task(folder: Path) -> None:
    for stem in ("val", "test"):
        (folder / "annotations" / f"country-capital_{stem}.json").rename(
            folder / "annotations" / f"seat_{stem}.json"
        )
    with pytest.raises(TaskError, match="pass instruction="):
        Task.from_folder(folder)
    task = Task.from_folder(folder, instruction="The seat:", task_word="seat")
    assert (task.instruction, task.task_word, task.domain) == ("The seat:", "seat", "")


def test_folder_errors(folder: Path) -> None:
    with pytest.raises(TaskError, match=r"food-color_val.json; tasks found.*country-capital"):
        Task.from_folder(folder, "food-color")
    with pytest.raises(TaskError, match="holds no folder 'annotations'"):
        Task.from_folder(folder / "images")
    path = folder / "annotations" / "country-capital_test.json"
    for text, message in (
        ("{", "is not JSON"),
        ('{"rows": []}', "no list of objects"),
        ('[{"input": "Mali"}]', r"object 0 lacks \['output'\]"),
        ('[{"input": "Mali", "output": "B", "image": "x.png"}]', "object 0: .*is not there.*x.png"),
        ('[{"input": "Peru", "output": "Lima"}]', "rows with the same input: 'Peru'"),
    ):
        write(path, text)
        with pytest.raises(TaskError, match=message):
            Task.from_folder(folder)


def test_csv(folder: Path) -> None:
    path = write(
        folder / "capital.csv",
        "input,output,aliases,image,split\n"
        "Peru,Lima,lima|LIMA,images/peru.png,validation\n"
        "Fiji,Suva,,,test\n",
    )
    task = Task.from_csv(path, instruction="The capital:")
    assert task.name == "capital"
    assert task.validation[0].answers == ("Lima", "lima", "LIMA")
    assert task.validation[0].image.size == (448, 300)
    assert task.test[0].picture is None


def test_csv_without_split_and_with_a_folder_of_pictures(folder: Path) -> None:
    path = write(folder / "c.csv", "input,output,image\nPeru,Lima,peru.png\nFiji,Suva,fiji.png\n")
    task = Task.from_csv(
        path,
        instruction="The capital:",
        images=folder / "images",
        validation=1,
        name="c2",
        width=10,
    )
    assert (task.name, len(task.validation), len(task.test)) == ("c2", 1, 1)
    assert task["Fiji"].image.width == 10


def test_a_short_csv_has_rows_for_both(folder: Path) -> None:
    lines = [f"c{i},d{i}" for i in range(70)]
    for rows, validation in ((2, 1), (9, 4), (30, 15), (59, 29), (70, 30)):
        path = write(folder / "c.csv", "\n".join(["input,output", *lines[:rows]]))
        task = Task.from_csv(path, instruction="x:")
        assert (len(task.validation), len(task.test)) == (validation, rows - validation)
    path = write(folder / "c.csv", "\n".join(["input,output", *lines[:9]]))
    for wrong in (0, 9, 30):
        with pytest.raises(TaskError, match="leaves .* write a column 'split'"):
            Task.from_csv(path, instruction="x:", validation=wrong)


def test_csv_errors(folder: Path) -> None:
    with pytest.raises(TaskError, match="there is no table"):
        Task.from_csv(folder / "none.csv", instruction="x:")
    for text, message in (
        ("name,output\na,b\n", r"lacks the columns \['input'\]; it has"),
        ("input,output,split\na,b,train\n", "line 2: the split is 'train'"),
        ("input,output\na,b\n,c\n", "line 3: a row needs a text as input"),
        ("input,output,image\na,b,x.png\n", "line 2: .*is not there"),
        ("input,output\na,b\na,c\n", "rows with the same input: 'a'"),
        ("input,output\n", "has no rows"),
    ):
        path = write(folder / "t.csv", text)
        with pytest.raises(TaskError, match=message):
            Task.from_csv(path, instruction="x:")


def test_csv_in_another_encoding_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("input,output\nCôte,x\n".encode("latin-1"))
    with pytest.raises(TaskError, match="not in UTF-8.*save it as 'CSV UTF-8'"):
        Task.from_csv(path, instruction="The capital:")
    path.write_text("input,output\n" + "a" * 200_000 + ",x\n")
    with pytest.raises(TaskError, match="cannot be read as CSV"):
        Task.from_csv(path, instruction="The capital:")
