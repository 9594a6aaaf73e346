"""What an experiment gives back: tables that print, plot, save and load themselves."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from vlm_lens.errors import VLMLensError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

__all__ = ["RecipeError", "Result"]

_FORMAT = "vlm_lens.Result/1"
_ABOUT = "provenance.json"


class RecipeError(VLMLensError):
    """A recipe, or a result, that cannot do what it was asked."""


@dataclass(frozen=True, eq=False)
class Result:
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

        from vlm_lens.figures.style import style

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
        return {"figure": style(fig, title=self.title, x=str(x), y=y)}

    @property
    def title(self) -> str:
        """One line: which recipe, on which model."""
        recipe = self.provenance.get("recipe", {}).get("class", type(self).__name__)
        model = self.provenance.get("model", {}).get("name")
        return f"{recipe} on {model}" if model else recipe

    # ------------------------------------------------------------------ files

    def save(self, folder: str | Path, *, plotlyjs: str = "directory") -> Path:
        """Writes the tables as CSV, the figures as HTML that needs no network, and provenance.

        Tables and provenance come first; see `draw` for what happens where a figure fails.

        Args:
            folder: Where to; made if it is not there.
            plotlyjs: Where the figures find the library that draws them: `"directory"` puts it
                beside them, a path to a file `.js` (relative to the folder) shares one.

        Returns:
            The folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tables = {"table": self.table, **self.tables}
        for name, table in tables.items():
            # every text quoted: the csv module leaves a lone carriage return bare
            table.to_csv(folder / f"{name}.csv", index=False, quoting=csv.QUOTE_NONNUMERIC)
        about = {
            "format": _FORMAT,
            "result": type(self).__name__,
            "tables": {name: _kinds_of(table) for name, table in tables.items()},
            "values": dict(self.values),
            "notes": list(self.notes),
            "provenance": dict(self.provenance),
        }
        text = json.dumps(about, indent=1, ensure_ascii=False)
        (folder / _ABOUT).write_text(text, encoding="utf-8")
        self.draw(folder, plotlyjs=plotlyjs)
        return folder

    def draw(self, folder: str | Path, *, plotlyjs: str = "directory") -> None:
        """Writes the figures alone; a table without numbers has none.

        A figure that cannot be drawn is a warning: what was measured is worth more than it.

        Args:
            folder: Where to; it must be there.
            plotlyjs: As of `save`.
        """
        try:
            for name, figure in self.plots().items():
                figure.write_html(Path(folder) / f"{name}.html", include_plotlyjs=plotlyjs)
        except RecipeError:
            return
        except Exception as error:
            warnings.warn(
                f"Figures of {self.title} were not drawn ({type(error).__name__}: {error}); its "
                "tables are saved. To draw them again: Result.load(folder).draw(folder).",
                stacklevel=2,
            )

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads what `save` wrote.

        A result of a class that is not imported comes back as a plain `Result`.

        Raises:
            RecipeError: No result in this folder, or one of another kind than asked.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise RecipeError(f"{folder} holds no saved result: {error}.") from None
        if not isinstance(about, dict) or about.get("format") != _FORMAT:
            raise RecipeError(f"{folder / _ABOUT} was not written by Result.save.")
        kind = Result._kinds.get(about["result"], Result)
        if not issubclass(kind, cls):
            raise RecipeError(
                f"{folder} holds a {kind.__name__}, not a {cls.__name__}: use "
                f"{kind.__name__}.load or Result.load."
            )
        tables = {
            name: _read_table(folder / f"{name}.csv", kinds)
            for name, kinds in about["tables"].items()
        }
        return kind(
            tables.pop("table"), tables, about["values"], tuple(about["notes"]), about["provenance"]
        )

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


def _kinds_of(table: pd.DataFrame) -> dict[str, str]:
    names = {"i": "int", "u": "int", "f": "float", "b": "bool"}
    return {str(c): names.get(table[c].dtype.kind, "str") for c in table.columns}


def _read_table(path: Path, kinds: Mapping[str, str]) -> pd.DataFrame:
    """A CSV file with every value as it was: texts such as `NA`, numbers to the last bit."""
    import pandas as pd

    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file)
    except (OSError, ValueError) as error:
        raise RecipeError(f"A table of this result cannot be read: {error}.") from None
    make = {
        "int": int,
        "float": lambda text: float(text) if text else float("nan"),
        "bool": lambda text: text == "True",
        "str": str,
    }
    columns = zip(*lines, strict=True) if lines else [()] * len(header)
    return pd.DataFrame(
        {
            name: pd.Series([make[kinds[name]](v) for v in values], dtype=_DTYPES[kinds[name]])
            for name, values in zip(header, columns, strict=True)
        }
    )


_DTYPES = {"int": "int64", "float": "float64", "bool": "bool", "str": "str"}
