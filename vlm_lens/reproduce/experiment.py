"""An experiment of the paper: what it claims, the recipes that test it, and how it compares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vlm_lens.recipes import Recipe, Result
    from vlm_lens.reproduce.setup import Setup

__all__ = ["Comparison", "Experiment", "Finding", "Results", "numbers", "texts"]

Results = Mapping[str, "Result"]

NUMBERS = ["method", "task", "quantity", "here", "low", "high", "paper", "paper_model"]
TEXTS = ["what", "here", "paper", "paper_model"]


@dataclass(frozen=True)
class Finding:
    """A statement of the paper, and whether it is so on this model.

    Attributes:
        statement: What the paper says.
        paper: Its numbers.
        here: The numbers here.
        holds: Whether the statement is true of the numbers here; None where that is no yes or no.
    """

    statement: str
    paper: str
    here: str
    holds: bool | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """An experiment's outcome on one model, beside the paper's.

    Attributes:
        numbers: A row a number: `method, task, quantity, here, low, high, paper, paper_model`;
            `low` and `high` bound its interval, NaN where there is none; `paper` is NaN where the
            paper has no such number.
        texts: What cannot be counted: `what, here, paper, paper_model`.
        findings: The paper's statements.
    """

    numbers: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=NUMBERS))
    texts: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=TEXTS))
    findings: tuple[Finding, ...] = ()


def _first_plots(setup: Setup, results: Results) -> list[go.Figure]:
    return [result.plot() for result in results.values()]


@dataclass(frozen=True)
class Experiment:
    """One table or figure of the paper, as recipes.

    Attributes:
        id: Its name, for example `"table2"`.
        title: What it is, in a line.
        claim: What the paper finds with it.
        recipes: The runs that it needs, by name; the same name always means the same recipe, so
            that experiments share runs.
        compare: The runs' results beside the paper's numbers.
        rows: Its rows of the list of experiments, E1 to E14.
        paper_models: The models on which the paper ran it.
        figures: What is drawn in the report.
        differs: Why numbers may differ from the paper's.
        stand_in: What stands in for data that cannot be shipped; empty if nothing does.
        needs: What a model must have: `"images"`, `"base"`, `"chat template"`.
        changes: Whether its numbers are measurements of time, which no two runs share.
    """

    id: str
    title: str
    claim: str
    recipes: Callable[[Setup], Mapping[str, Recipe]]
    compare: Callable[[Setup, Results], Comparison]
    rows: tuple[str, ...] = ()
    paper_models: tuple[str, ...] = ("Idefics2",)
    figures: Callable[[Setup, Results], Sequence[go.Figure]] = _first_plots
    differs: tuple[str, ...] = ()
    stand_in: str = ""
    needs: tuple[str, ...] = ("images",)
    changes: bool = False

    def paper_model(self, setup: Setup) -> str:
        """The paper's model that this experiment is set beside."""
        if setup.paper_model in self.paper_models:
            return setup.paper_model
        return self.paper_models[-1]


def numbers(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of `Comparison.numbers`; what a row leaves out is not known, accuracy is assumed."""
    nan = float("nan")
    empty = {"task": "mean", "quantity": "accuracy", "low": nan, "high": nan, "paper": nan}
    made = [{**empty, "paper_model": "", **row} for row in rows]
    for row in made:
        row["paper"] = nan if row["paper"] is None else row["paper"]
    return pd.DataFrame(made, columns=NUMBERS)


def texts(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of `Comparison.texts`."""
    return pd.DataFrame([{"paper": "", "paper_model": "", **row} for row in rows], columns=TEXTS)
