"""Rows from tables: the package's own, or a CSV file."""

from __future__ import annotations

import csv
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from vlm_lens.tasks.rows import Row, TaskError, make_row

__all__ = ["Splits", "numbered_row", "read_csv", "read_package"]

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
    records = _records(root.joinpath("tables", f"{name}.csv"))
    told = _records(root.joinpath("descriptions", f"{name.partition('-')[0]}.csv"))
    descriptions = {record["input"]: record["description"] for record in told}
    splits: dict[str, list[Row]] = {"validation": [], "test": []}
    for record in records:
        splits[record["split"]].append(
            Row(
                record["input"],
                record["output"],
                tuple(a for a in record["aliases"].split("|") if a),
                _inside(pictures, record["image"]),
                description=descriptions.get(record["input"], ""),
            )
        )
    return tuple(splits["validation"]), tuple(splits["test"])


def read_csv(
    path: Path, *, images: Path | None, validation: int | None, width: int | None
) -> Splits:
    """Return the rows of a CSV file with the columns of the shipped tables.

    Args:
        path: The file: columns `input` and `output`, and where wanted `image`, `aliases` (with
            `|` between them) and `split` (`validation` or `test`).
        images: Where the paths of the pictures start; the CSV file's folder if None.
        validation: Without a `split` column, how many rows from the top are for validation;
            `None`: 30, or half of fewer than 60.
        width: As in `Row`.

    Returns:
        The validation rows and the test rows.

    Raises:
        TaskError: The file, a column, a value or a picture is missing or wrong, or no row is left
            for the test.
    """
    if not path.is_file():
        raise TaskError(f"there is no table {path}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            records = list(reader)
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{path} is not in UTF-8 ({error.reason} at byte {error.start}): save it as "
            "'CSV UTF-8', or write it with encoding='utf-8'"
        ) from error
    except (OSError, csv.Error) as error:
        raise TaskError(f"{path} cannot be read as CSV: {error}") from error
    missing = [column for column in ("input", "output") if column not in columns]
    if missing:
        raise TaskError(f"{path} lacks the columns {missing}; it has {list(columns)}")
    if validation is None:
        validation = min(30, len(records) // 2)
    splits: dict[str, list[Row]] = {"validation": [], "test": []}
    for i, record in enumerate(records):
        aliases = [a.strip() for a in (record.get("aliases") or "").split("|") if a.strip()]
        row = numbered_row(
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
    if records and "split" not in columns and not all(splits.values()):
        raise TaskError(
            f"{path} has {len(records)} row{'s' * (len(records) != 1)}, of which validation="
            f"{validation} leaves {len(splits['validation'])} for validation and "
            f"{len(splits['test'])} for the test: pass another number, or write a column 'split'"
        )
    return tuple(splits["validation"]), tuple(splits["test"])


def numbered_row(
    place: str,
    given: str,
    picture: str | Traversable | None,
    answers: str | list[str],
    folder: Path | None,
    width: int | None,
) -> Row:
    """Make a row as `make_row` does, with its place in a file in front of an error.

    Args:
        place: The file, and which of its rows this is.
        given: The input as text.
        picture: A picture, the path of one, or None.
        answers: The label, or the label and its aliases.
        folder: Where a relative path starts.
        width: As in `Row`.

    Raises:
        TaskError: The row is wrong.
    """
    try:
        return make_row(given, picture, answers, folder=folder, width=width)
    except TaskError as error:
        raise TaskError(f"{place}: {error}") from error


def _records(table: Traversable) -> list[dict[str, str]]:
    with table.open("r", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _first(index: int, validation: int) -> str:
    return "validation" if index < validation else "test"


def _inside(folder: Traversable, path: str) -> Traversable:
    return folder.joinpath(*path.split("/"))
