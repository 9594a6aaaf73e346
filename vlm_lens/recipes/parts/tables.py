"""Tables as CSV files from which every value comes back as it was."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lens.storage.files import FileError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["kinds_of", "read_table", "same_table", "write_table"]

_DTYPES = {
    "int": "int64", "float": "float64", "bool": "bool", "str": "str", "text": "object",
    "label": "object", "json": "object",
}  # fmt: skip
_MAKE: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": lambda text: float(text) if text else float("nan"),
    "bool": lambda text: text == "True",
    "str": str,
    "text": lambda text: text or None,
    "label": lambda text: int(text) if text.isdecimal() else text,
    "json": json.loads,
}


def kinds_of(table: pd.DataFrame) -> dict[str, str]:
    """What each column holds: `int`, `float`, `bool`, `str`, `text`, `label` or `json`.

    `text` is texts of which some are missing (and none is empty). A label is a number from 0 on or
    a word, such as a layer; `json` is anything else that is mixed.
    """
    names = {"i": "int", "u": "int", "f": "float", "b": "bool"}

    def kind(column: Any) -> str:
        known = names.get(column.dtype.kind)
        if known or all(isinstance(v, str) for v in column):
            return known or "str"
        if all(v is None or v != v or (isinstance(v, str) and v) for v in column):
            return "text"
        return "label" if all(map(_is_label, column)) else "json"

    return {str(name): kind(table[name]) for name in table.columns}


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Writes a table.

    Raises:
        FileError: A column holds what is neither number nor text nor a list of them.
    """
    shown = table.copy()
    for name, kind in kinds_of(table).items():
        if kind == "json":
            try:
                shown[name] = [json.dumps(_known(v), ensure_ascii=False) for v in table[name]]
            except TypeError as error:
                raise FileError(f"The column {name!r} cannot be saved: {error}.") from None
    # every text quoted: the csv module leaves a lone carriage return bare
    shown.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)


def read_table(path: Path, kinds: Mapping[str, str]) -> pd.DataFrame:
    """A table with every value as it was: texts such as `NA`, numbers to the last bit.

    Args:
        path: The file.
        kinds: As `kinds_of` gave them.

    Raises:
        FileError: It cannot be read, or holds another table.
    """
    import pandas as pd

    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file)
        if header != list(kinds):
            raise ValueError(f"it has the columns {header}, not {list(kinds)}")
        columns = zip(*lines, strict=True) if lines else [()] * len(header)
        return pd.DataFrame(
            {
                name: pd.Series([_MAKE[kinds[name]](v) for v in values], dtype=_DTYPES[kinds[name]])
                for name, values in zip(header, columns, strict=True)
            }
        )
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise FileError(f"The table {path} cannot be read: {error}.") from None


def same_table(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two tables have the same columns, kinds and values, missing ones included."""
    import pandas as pd

    if list(map(str, one.columns)) != list(map(str, other.columns)) or len(one) != len(other):
        return False
    if kinds_of(one) != kinds_of(other):
        return False

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, list | tuple | dict) or isinstance(b, list | tuple | dict):
            return json.dumps(_known(a)) == json.dumps(_known(b))
        return bool(a == b) or (pd.isna(a) and pd.isna(b))

    return all(
        same(a, b) for name in one.columns for a, b in zip(one[name], other[str(name)], strict=True)
    )


def _is_label(value: Any) -> bool:
    if isinstance(value, str):
        return not value.isdecimal()
    return type(value) is int and value >= 0


def _known(value: Any) -> Any:
    """A value as JSON knows it; what is missing is null."""
    if isinstance(value, list | tuple):
        return [_known(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _known(v) for k, v in value.items()}
    if hasattr(value, "item"):
        value = value.item()
    return None if value != value else value  # noqa: PLR0124  nan, NaT
