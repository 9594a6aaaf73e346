"""How rows are shown: as HTML in a notebook, as a DataFrame."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from vlm_lens.pictures import thumbnail
from vlm_lens.tasks.rows import Row, TaskError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["dataframe", "table"]


def dataframe(splits: Mapping[str, Iterable[Row]]) -> pd.DataFrame:
    """The rows of all splits as one DataFrame.

    Args:
        splits: The rows of each split.

    Returns:
        The columns of the shipped tables, the path of the picture in place of the picture.
    """
    import pandas as pd

    columns = ["input", "output", "aliases", "image", "split"]
    records = [
        (row.input, row.output, "|".join(row.aliases), _path(row), split)
        for split, rows in splits.items()
        for row in rows
    ]
    return pd.DataFrame(records, columns=columns)


def table(title: str, subtitle: str, rows: Iterable[Row]) -> str:
    """Some rows as an HTML table with their pictures.

    Args:
        title: The first line.
        subtitle: The second line.
        rows: The rows.

    Returns:
        HTML that needs no file beside it.
    """
    lines = "".join(
        f"<tr><td>{_picture(row)}</td><td>{html.escape(row.input)}</td>"
        f"<td>{html.escape(' | '.join(row.answers))}</td></tr>"
        for row in rows
    )
    return (
        f"<b>{html.escape(title)}</b><br><i>{html.escape(subtitle)}</i>"
        f"<table><tr><th>picture</th><th>input</th><th>output</th></tr>{lines}</table>"
    )


def _path(row: Row) -> str:
    return str(row.picture) if isinstance(row.picture, os.PathLike) else ""


def _picture(row: Row) -> str:
    """The picture as HTML, or nothing: a repr never raises."""
    try:
        return thumbnail(row.image, alt=row.input)
    except (TaskError, OSError, ValueError):
        return ""
