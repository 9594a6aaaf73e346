"""Where rows come from: the package's tables, a CSV file, or a folder as the authors publish it."""

from __future__ import annotations

import csv
import json
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from vlm_lens.tasks.rows import Row, TaskError, make_row

__all__ = ["folder_tasks", "read_csv", "read_folder", "read_package"]

Splits = tuple[tuple[Row, ...], tuple[Row, ...]]


def read_package(name: str) -> Splits:
    """Return the validation and test rows of a task that ships with the package.

    Args:
        name: The task's name.

    Returns:
        The validation rows and the test rows, each in the order of the table.
    """
    root = files("vlm_lens.tasks")
    pictures = root.joinpath("pictures")
    with root.joinpath("tables", f"{name}.csv").open("r", encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    splits: dict[str, list[Row]] = {"validation": [], "test": []}
    for record in records:
        splits[record["split"]].append(
            Row(
                record["input"],
                record["output"],
                tuple(a for a in record["aliases"].split("|") if a),
                _inside(pictures, record["image"]),
            )
        )
    return tuple(splits["validation"]), tuple(splits["test"])


def read_csv(path: Path, *, images: Path | None, validation: int, width: int | None) -> Splits:
    """Return the rows of a CSV file with the columns of the shipped tables.

    Args:
        path: The file: columns `input` and `output`, and where wanted `image`, `aliases` (with
            `|` between them) and `split` (`validation` or `test`).
        images: Where the paths of the pictures start; the CSV file's folder if None.
        validation: Without a `split` column, how many rows from the top are for validation.
        width: As in `Row`.

    Returns:
        The validation rows and the test rows.

    Raises:
        TaskError: The file, a column, a value or a picture is missing or wrong.
    """
    if not path.is_file():
        raise TaskError(f"there is no table {path}")
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        records = list(reader)
    missing = [column for column in ("input", "output") if column not in columns]
    if missing:
        raise TaskError(f"{path} lacks the columns {missing}; it has {list(columns)}")
    splits: dict[str, list[Row]] = {"validation": [], "test": []}
    for i, record in enumerate(records):
        aliases = [a.strip() for a in (record.get("aliases") or "").split("|") if a.strip()]
        row = _numbered(
            f"{path}, line {i + 2}",
            record["input"],
            record.get("image") or None,
            [record["output"], *aliases],
            images or path.parent,
            width,
        )
        split = record.get("split") if "split" in columns else _first(i, validation)
        if split not in splits:
            raise TaskError(
                f"{path}, line {i + 2}: the split is {split!r}; write 'validation' or 'test'"
            )
        splits[split].append(row)
    return tuple(splits["validation"]), tuple(splits["test"])


def folder_tasks(folder: Path) -> tuple[str, ...]:
    """Return the names of the tasks in a folder as the paper's authors publish it.

    Args:
        folder: The folder that holds `annotations/`.

    Returns:
        The names that have both `annotations/{name}_val.json` and `..._test.json`.
    """
    annotations = folder / "annotations"
    names = sorted(path.name.removesuffix("_val.json") for path in annotations.glob("*_val.json"))
    return tuple(name for name in names if (annotations / f"{name}_test.json").is_file())


def read_folder(folder: Path, name: str, *, width: int | None) -> Splits:
    """Return the rows of a task in a folder as the paper's authors publish it.

    Args:
        folder: The folder with `annotations/{name}_{val|test}.json`: a list of objects with
            `input`, `image` (relative to the folder) and `output`, or such a list under `data`.
        name: The task's name.
        width: As in `Row`.

    Returns:
        The validation rows and the test rows.

    Raises:
        TaskError: A file, a key or a picture is missing or wrong.
    """
    splits = []
    for stem in ("val", "test"):
        path = folder / "annotations" / f"{name}_{stem}.json"
        if not path.is_file():
            raise TaskError(
                f"there is no {path}; tasks found there: {list(folder_tasks(folder)) or 'none'}"
            )
        try:
            records = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise TaskError(f"{path} is not JSON: {error}") from error
        if isinstance(records, dict):
            records = records.get("data")
        if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
            raise TaskError(f"{path} holds no list of objects, alone or under 'data'")
        rows = []
        for i, record in enumerate(records):
            missing = [key for key in ("input", "output") if key not in record]
            if missing:
                raise TaskError(f"{path}, object {i} lacks {missing}; it has {sorted(record)}")
            rows.append(
                _numbered(
                    f"{path}, object {i}",
                    record["input"],
                    record.get("image"),
                    record["output"],
                    folder,
                    width,
                )
            )
        splits.append(tuple(rows))
    return splits[0], splits[1]


def _numbered(
    place: str,
    given: str,
    picture: str | None,
    answers: str | list[str],
    folder: Path,
    width: int | None,
) -> Row:
    try:
        return make_row(given, picture, answers, folder=folder, width=width)
    except TaskError as error:
        raise TaskError(f"{place}: {error}") from error


def _first(index: int, validation: int) -> str:
    return "validation" if index < validation else "test"


def _inside(folder: Traversable, path: str) -> Traversable:
    return folder.joinpath(*path.split("/"))
