"""An experiment of the paper: what it claims, the recipes that test it, and how it compares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from vlm_lens.terms import BESIDE_ACCURACY, MEAN

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vlm_lens.recipes import Recipe, Result
    from vlm_lens.reproduce.setup import Setup

__all__ = ["Comparison", "Experiment", "Finding", "Results", "always"]

Results = Mapping[str, "Result"]

NUMBERS = ["method", "task", "quantity", "here", *BESIDE_ACCURACY, "paper", "paper_model"]
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
        numbers: A row a number: `method, task, quantity, here`; `low` and `high` bound its 95 %
            interval over queries, `seeds_low` and `seeds_high` that over seeds; `strict` and
            `balanced` are the same accuracy by the other rules; `paper`, the paper's number, and
            `paper_model`. What is not known is NaN.
        texts: What cannot be counted: `what, here, paper, paper_model`.
        findings: The paper's statements.
    """

    numbers: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=NUMBERS))
    texts: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=TEXTS))
    findings: tuple[Finding, ...] = ()

    @classmethod
    def of(
        cls,
        numbers: Iterable[Mapping[str, Any]] = (),
        texts: Iterable[Mapping[str, Any]] = (),
        findings: Iterable[Finding] = (),
    ) -> Comparison:
        """From rows; what a row leaves out is not known, accuracy over all tasks is assumed."""
        row = {"task": MEAN, "quantity": "accuracy", "paper_model": ""}
        table = pd.DataFrame([{**row, **one} for one in numbers], columns=NUMBERS)
        known = [c for c in NUMBERS if c not in ("method", "task", "quantity", "paper_model")]
        said = [{"paper": "", "paper_model": "", **one} for one in texts]
        return cls(
            table.astype(dict.fromkeys(known, "float64")), pd.DataFrame(said, columns=TEXTS),
            tuple(findings),
        )  # fmt: skip


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
        differs: Why numbers on a setup may differ from the paper's.
        stand_in: What stands in for the paper's data on a setup; empty if nothing does.
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
    differs: Callable[[Setup], Sequence[str]] = lambda setup: ()
    stand_in: Callable[[Setup], str] = lambda setup: ""
    needs: tuple[str, ...] = ("images",)
    changes: bool = False

    def paper_model(self, setup: Setup) -> str:
        """The paper's model that this experiment is set beside."""
        if setup.paper_model in self.paper_models:
            return setup.paper_model
        return self.paper_models[-1]


def always(*lines: str) -> Callable[[Setup], Sequence[str]]:
    """The same lines on every setup."""
    return lambda setup: lines
