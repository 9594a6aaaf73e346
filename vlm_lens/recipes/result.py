"""What an experiment gives back: tables that print, plot, save and load themselves."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from vlm_lens.errors import VLMLensError
from vlm_lens.keywords import Answering
from vlm_lens.recipes.parts.tables import kinds_of, read_table, same_table, write_table
from vlm_lens.storage.files import (
    FileError,
    as_path,
    current,
    file_name,
    inside,
    read_json,
    written_together,
)

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

__all__ = ["RecipeError", "Result"]

_FORMAT = "vlm_lens.Result/1"
_ABOUT, _SET = "provenance.json", "result"


class RecipeError(VLMLensError):
    """A recipe, or a result, that cannot do what it was asked."""


@dataclass(frozen=True, eq=False)
class Result(Answering):
    """The outcome of a recipe.

    A subclass says what is particular to its experiment: `summary()` is the table that is printed,
    `plots()` are its figures.

    Attributes:
        table: The main table, one observation a row.
        tables: Further tables, by name.
        values: Further facts, by name: numbers, texts and lists of them.
        notes: What a reader of the table must know.
        provenance: The recipe, model, library versions, seeds, date and duration.
    """

    table: pd.DataFrame
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    _kinds: ClassVar[dict[str, type[Result]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        Result._kinds[cls.__name__] = cls

    def to_dataframe(self) -> pd.DataFrame:
        """The main table, a copy."""
        return self.table.copy()

    def summary(self) -> pd.DataFrame:
        """The table that is printed; the main table unless a subclass says otherwise."""
        return self.table

    def plot(self) -> go.Figure:
        """The main figure; it is returned, not shown."""
        return next(iter(self.plots().values()))

    def plots(self) -> dict[str, go.Figure]:
        """Every figure, the main one first: by default the numbers over the first column.

        Raises:
            RecipeError: The table has no column of numbers.
        """
        import plotly.graph_objects as go

        from vlm_lens.figures.style import legend_below, style

        x, *others = self.table.columns
        numbers = [c for c in others if self.table[c].dtype.kind in "if"]
        if not numbers:
            raise RecipeError(
                "Nothing to plot: beside its first column the table has no column of numbers. "
                "Give your Result subclass a method plots() that returns {name: figure}."
            )
        fig = go.Figure()
        kind = go.Scatter if self.table[x].dtype.kind in "if" else go.Bar
        for column in numbers:
            fig.add_trace(kind(x=self.table[x], y=self.table[column], name=str(column)))
        y = str(numbers[0]) if len(numbers) == 1 else None
        return {"figure": legend_below(style(fig, title=self.title, x=str(x), y=y, height=440))}

    @property
    def title(self) -> str:
        """One line: which recipe, on which model."""
        recipe = self.provenance.get("recipe", {}).get("class", type(self).__name__)
        model = self.provenance.get("model", {}).get("name")
        return f"{recipe} on {model}" if model else recipe

    # ------------------------------------------------------------------ files

    def save(self, folder: str | Path, *, plotlyjs: str = "directory") -> Path:
        """Writes the tables as CSV, the figures as HTML that needs no network, and provenance.

        The files are of one save, wherever the process ends; those of an earlier save that are not
        written again are removed, other files in the folder stay. See `draw` for what happens
        where a figure fails.

        Args:
            folder: Where to; made if it is not there.
            plotlyjs: Where the figures find the library that draws them: `"directory"` puts it
                beside them, a path to a file `.js` (relative to the folder) shares one.

        Returns:
            The folder.

        Raises:
            RecipeError: The values hold what cannot be saved, or a table's name is no file's.
            VLMLensError: The files cannot be written; what was there before still is.
        """
        folder = as_path(folder, RecipeError)
        tables = {"table": self.table, **self.tables}
        about = {
            "format": _FORMAT,
            "result": type(self).__name__,
            "tables": {file_name(name): kinds_of(table) for name, table in tables.items()},
            "values": dict(self.values),
            "notes": list(self.notes),
            "provenance": dict(self.provenance),
        }
        try:
            json.dumps(about, default=_as_json)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"This result cannot be saved: {error}.") from None
        with written_together(folder, _SET, remove=_written_before(folder)) as to:
            for name, table in tables.items():
                write_table(table, to / f"{name}.csv")
            self.draw(to, plotlyjs=plotlyjs)
            about["files"] = sorted(path.name for path in to.iterdir())
            text = json.dumps(about, indent=1, ensure_ascii=False, default=_as_json)
            (to / _ABOUT).write_text(text, encoding="utf-8")
        return folder

    def draw(self, folder: str | Path, *, plotlyjs: str = "directory") -> None:
        """Writes the figures alone; a table without numbers has none.

        A figure that cannot be drawn is a warning: what was measured is worth more than it.

        Args:
            folder: Where to; it must be there.
            plotlyjs: As of `save`.
        """
        from vlm_lens.figures.write import write_figure

        try:
            for name, figure in self.plots().items():
                write_figure(figure, Path(folder) / f"{file_name(name)}.html", plotlyjs=plotlyjs)
        except RecipeError:
            return
        except Exception as error:
            warnings.warn(
                f"Figures of {self.title} were not drawn ({type(error).__name__}: {error}); its "
                "tables are saved. To draw them again: Result.load(folder).draw(folder).",
                stacklevel=2,
            )

    @staticmethod
    def is_saved(folder: str | Path) -> bool:
        """Whether a folder holds a result that was saved to the end."""
        return current(Path(folder) / _ABOUT, _SET).is_file()

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads what `save` wrote.

        A result of a class that is not imported comes back as a plain `Result`.

        Raises:
            RecipeError: No result in this folder, or one of another kind than asked.
        """
        folder = as_path(folder, RecipeError)
        try:
            about = read_json(current(folder / _ABOUT, _SET))
        except FileError as error:
            raise RecipeError(f"{folder} holds no saved result: {error}") from None
        if not isinstance(about, dict) or about.get("format") != _FORMAT:
            raise RecipeError(f"{folder / _ABOUT} was not written by Result.save.")
        keys = ("result", "tables", "values", "notes", "provenance")
        if missing := [key for key in keys if key not in about]:
            raise RecipeError(f"{folder / _ABOUT} is damaged: it lacks {missing[0]!r}.")
        kind = Result._kinds.get(about["result"], Result)
        if not issubclass(kind, cls):
            raise RecipeError(
                f"{folder} holds a {kind.__name__}, not a {cls.__name__}: use "
                f"{kind.__name__}.load or Result.load."
            )
        tables = {
            name: read_table(
                inside(folder, current(folder / f"{file_name(name)}.csv", _SET)), kinds
            )
            for name, kinds in about["tables"].items()
        }
        if "table" not in tables:
            raise RecipeError(f"{folder / _ABOUT} is damaged: it names no main table.")
        return kind(
            tables.pop("table"), tables, about["values"], tuple(about["notes"]), about["provenance"]
        )

    def __eq__(self, other: object) -> bool:
        """Whether everything in both is the same, as it is when it is saved and loaded."""
        if type(other) is not type(self):
            return NotImplemented
        same_tables = self.tables.keys() == other.tables.keys() and all(
            same_table(mine, theirs)
            for mine, theirs in [
                (self.table, other.table),
                *((table, other.tables[name]) for name, table in self.tables.items()),
            ]
        )
        return same_tables and self._said() == other._said()

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.table.shape, tuple(self.tables)))

    def _said(self) -> str:
        """Everything but the tables, as text."""
        said = [dict(self.values), list(self.notes), dict(self.provenance)]
        return json.dumps(said, sort_keys=True, default=_as_json)

    # ------------------------------------------------------------------ printing

    def __repr__(self) -> str:
        text = self.summary().to_string(index=False, max_rows=40, na_rep="-", float_format=_number)
        return "\n".join([self.title, "", text, *(["", *self.notes] if self.notes else [])])

    def _repr_html_(self) -> str:
        from html import escape

        table = self.summary().to_html(
            index=False, max_rows=40, na_rep="-", float_format=_number, border=0
        )
        notes = "".join(f"<div><small>{escape(note)}</small></div>" for note in self.notes)
        return f"<b>{escape(self.title)}</b>{table}{notes}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) > 1 and value == int(value) else f"{value:.3f}"


def _as_json(value: Any) -> Any:
    """Numbers of numpy and mappings as JSON knows them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"there is a {type(value).__name__} among its values, {value!r}")


def _written_before(folder: Path) -> list[str]:
    """The files of an earlier save, as far as it says."""
    path = current(folder / _ABOUT, _SET)
    try:
        about = read_json(path) if path.exists() else {}
        return [file_name(name) for name in about.get("files", ())]
    except (FileError, AttributeError, TypeError):  # damaged, or somebody else's: then they stay
        return []
