"""What cross-modal patching gives: accuracies by task and method, and the layer sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from vlm_lens.recipes.parts.controls import CONTROLS
from vlm_lens.recipes.parts.scoring import Scores, balanced, bootstrap, over_seeds
from vlm_lens.recipes.result import RecipeError, Result
from vlm_lens.tasks import Task
from vlm_lens.terms import (
    BEST_TOKEN,
    INTERVALS,
    MAJORITY,
    MEAN,
    METHODS,
    OTHER_RULES,
    PATCH,
    SCORES,
    WHOLE_RULES,
    short_names,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Difference", "Run", "TransferResult", "Whole", "best_layer", "transfer_result"]


@dataclass(frozen=True, eq=False)
class Whole:
    """Answers of several tokens, scored as a whole, one entry a row.

    Attributes:
        probs: The geometric mean of the probabilities of the answer's tokens, teacher-forced.
        greedy: Whether greedy decoding says the answer.
    """

    probs: np.ndarray
    greedy: np.ndarray


@dataclass(frozen=True, eq=False)
class Run:
    """All test rows of a task, answered by one method with one seed (0 where it needs none)."""

    task: Task
    method: str
    seed: int
    answers: Sequence[Sequence[str]]
    scores: Scores
    whole: Whole | None = None


@dataclass(frozen=True)
class Difference:
    """A difference of two accuracies, with its 95 % interval.

    Attributes:
        mean: The difference, -1 to 1.
        low: The lower bound.
        high: The upper bound.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.2f} (95 % {self.low:+.2f} to {self.high:+.2f})"


class TransferResult(Result):
    """Accuracies of prompting and patching.

    `table` has one row a task and method, and the mean over tasks. `accuracy` is by the prefix
    rule; `low` and `high` bound its 95 % bootstrap interval over queries, `seeds_low` and
    `seeds_high` its 95 % t-interval over seeds (NaN where there is one); `strict` wants the
    answer's first token; `balanced` gives each label the same weight. Where whole answers were
    scored, `whole` wants every token of the answer by greedy decoding, and `answer_prob` is the
    mean probability of the answer (NaN where a method is one token). `tables["layers"]` is the
    sweep on the validation rows, `tables["predictions"]` holds every answer (seed 0: the method
    needs no seed).
    """

    @property
    def layer(self) -> int:
        """The 0-based block whose output is patched."""
        return self.values["layer"]

    @property
    def direction(self) -> str:
        """From which modality to which the task goes."""
        return f"{self.values['source']} → {self.values['query']}"

    @property
    def layers(self) -> pd.DataFrame:
        """Validation accuracy by task, seed and layer; empty if the layer was given."""
        return self.tables["layers"]

    @property
    def predictions(self) -> pd.DataFrame:
        """Every answer of every method."""
        return self.tables["predictions"]

    def accuracy(self, method: str = PATCH, task: str = MEAN) -> float:
        """One number of the table.

        Raises:
            RecipeError: No such method or task.
        """
        found = self.table[(self.table["method"] == method) & (self.table["task"] == task)]
        if found.empty:
            raise RecipeError(
                f"There is no {method!r} for {task!r}; methods: "
                f"{', '.join(self.table['method'].unique())}; tasks: "
                f"{', '.join(self.table['task'].unique())}."
            )
        return float(found["accuracy"].iloc[0])

    def difference(
        self, method_a: str, method_b: str, task: str = MEAN, *, resamples: int = 2000
    ) -> Difference:
        """How much better one method is than another on the same queries, by a paired bootstrap.

        For each query the share of seeds in which the one is right, less that of the other; the
        queries of each task are resampled.

        Args:
            method_a: The first method.
            method_b: The second, which is subtracted.
            task: A task, or the mean over all.
            resamples: How often queries are drawn.

        Raises:
            RecipeError: No such method or task, or a method was not run on all tasks.
        """
        for method in (method_a, method_b):
            self.accuracy(method, task)
        names = list(dict.fromkeys(self.predictions["task"])) if task == MEAN else [task]
        paired = []
        for name in names:
            mine = self.predictions[self.predictions["task"] == name]
            a, b = (
                mine[mine["method"] == m].groupby("input", sort=False)["correct"].mean()
                for m in (method_a, method_b)
            )
            paired.append((a.astype(float) - b.astype(float).reindex(a.index)).to_numpy())
        return Difference(
            float(np.mean([one.mean() for one in paired])),
            *bootstrap(paired, resamples=resamples),
        )

    def summary(self) -> pd.DataFrame:
        """Methods by tasks, as the paper prints them; intervals and further rules of the mean."""
        wide = self.table.pivot(index="method", columns="task", values="accuracy")
        tasks = list(dict.fromkeys(self.table["task"]))
        methods = list(dict.fromkeys(self.table["method"]))
        wide = wide.loc[methods, tasks].round(3)
        mean = self.table[self.table["task"] == MEAN].set_index("method")
        mean = mean.reindex(methods)  # a control that some tasks cannot have has no mean
        for name, low, high in INTERVALS:
            bounds = zip(mean[low], mean[high], strict=True)
            wide[name] = ["-" if np.isnan(lo) else f"{lo:.2f}-{hi:.2f}" for lo, hi in bounds]
        for name in (rule for rule in (*OTHER_RULES, *WHOLE_RULES) if rule in mean):
            wide[name] = mean[name].round(3)
        return wide.rename(columns=short_names(tasks)).reset_index().rename_axis(columns=None)

    def plots(self) -> dict[str, go.Figure]:
        """Bars by task, every method and control, and the layer sweep where there is one."""
        from vlm_lens.figures.methods import method_dots
        from vlm_lens.figures.transfer_bars import transfer_bars

        sweep = {} if self.layers.empty else {"layer_sweep": self.plot_layers()}
        bars = transfer_bars(self.table, title=f"{self.direction} transfer")
        dots = method_dots(self.table, title=f"{self.direction}, by method")
        return {"transfer": bars, "methods": dots, **sweep}

    def plot_layers(self) -> go.Figure:
        """Validation accuracy by layer.

        Raises:
            RecipeError: The layer was given, so none was tried.
        """
        from vlm_lens.figures.layers import Panel, layer_figure

        if self.layers.empty:
            raise RecipeError("There is no sweep: the recipe named its layer. Leave layer=None.")
        title = f"Where the patch works: {self.direction}"
        subtitle = "Validation rows; mean over seeds, band: one standard deviation over seeds"
        return layer_figure([Panel(title, self.layers, self.layer)], title=title, subtitle=subtitle)


def best_layer(layers: pd.DataFrame) -> int:
    """The layer of the highest accuracy, averaged over seeds, then tasks; of equals the lowest."""
    by_task = layers.groupby(["task", "layer"])["accuracy"].mean()
    return int(by_task.groupby("layer").mean().round(12).idxmax())


def transfer_result(
    runs: Sequence[Run], layers: pd.DataFrame | None, layer: int, recipe: Any
) -> TransferResult:
    """The result of a recipe's runs.

    Args:
        runs: Every method, task and seed.
        layers: The sweep, if there was one.
        layer: The layer patched.
        recipe: The CrossModalPatch.
    """
    predictions = pd.concat([_answers(run) for run in runs], ignore_index=True)
    tasks = list({run.task.name: run.task for run in runs}.values())
    columns = ["task", "seed", "layer", "accuracy", "strict"]
    chosen = "was given" if layers is None else "was chosen on the validation rows"
    if layers is None:
        layers = pd.DataFrame({c: pd.Series(dtype="float64") for c in columns})
    seeds, methods = ", ".join(map(str, recipe.used_seeds())), {run.method for run in runs}
    notes = (
        f"Patched: the output of block {layer} (0-based), at the query's last position; the layer "
        f"{chosen}.",
        f"{recipe.source} -> {recipe.query}, accuracy by the prefix rule, mean over seeds {seeds}. "
        "For the mean over tasks: 95 %, bootstrap over queries and t-interval over seeds; strict: "
        "the answer's first token; balanced: each label has the same weight.",
        "Wrong, random and shuffled vectors are written at the same place with the norm of the "
        "task vector; 'as that task': the same answers, judged by what the other task asks.",
        f"{MAJORITY}: the first token of the commonest test label, said to every query; "
        f"{BEST_TOKEN}: the token right for most validation rows. Both by the same rule.",
    )
    if used := [c.name for c in CONTROLS if c.key in ("single", "added") and c.name in methods]:
        notes += (
            f"{' and '.join(used)}: at the block of the patch, which is chosen for the mean vector "
            "put in place; another may suit them better.",
        )
    if any(run.whole for run in runs):
        notes += (
            "whole: greedy decoding says every token of an answer; answer_prob: the geometric mean "
            "of the probabilities of its tokens, each after those before it; of a label and its "
            "aliases the likeliest counts.",
        )
    if recipe.source == "instruction":
        notes += ("Prompt: the instruction, an empty line, the query. Nothing is drawn: one seed.",)
    values = {"layer": layer, "source": recipe.source, "query": recipe.query}
    return TransferResult(
        _table(predictions, tasks),
        {"layers": layers.reset_index(drop=True), "predictions": predictions},
        values,
        notes,
    )


def _answers(run: Run) -> pd.DataFrame:
    whole = (
        {}
        if run.whole is None
        else {"whole": run.whole.greedy.astype(float), "answer_prob": run.whole.probs}
    )
    return pd.DataFrame(
        {
            "task": run.task.name,
            "method": run.method,
            "seed": run.seed,
            "input": [row.input for row in run.task.test],
            "prediction": run.scores.predictions,
            "answer": [accepted[0] for accepted in run.answers],
            "correct": run.scores.correct,
            "strict": run.scores.strict,
            **whole,
        }
    )


def _table(predictions: pd.DataFrame, tasks: Sequence[Task]) -> pd.DataFrame:
    found = {
        (task, method): _Numbers.of(mine)
        for (task, method), mine in predictions.groupby(["task", "method"], sort=False)
    }
    rows = []
    for method in dict.fromkeys((*METHODS, *(m for _, m in found))):  # others after the known
        mine = {t.name: found[t.name, method] for t in tasks if (t.name, method) in found}
        rows += [(name, method, *_Numbers.row([one])) for name, one in mine.items()]
        if len(mine) == len(tasks):
            rows.append((MEAN, method, *_Numbers.row(list(mine.values()))))
    table = pd.DataFrame(rows, columns=["task", "method", *_Numbers.columns])
    return table if WHOLE_RULES[0] in predictions else table.drop(columns=list(WHOLE_RULES))


@dataclass(frozen=True, eq=False)
class _Numbers:
    """What a method got on one task.

    Attributes:
        by_query: The share of seeds in which each query was right.
        by_seed: The accuracy of each seed.
        strict: The accuracy by the strict rule.
        balanced: The balanced accuracy.
        whole: By each of `WHOLE_RULES`; NaN where whole answers were not scored.
    """

    by_query: np.ndarray
    by_seed: np.ndarray
    strict: float
    balanced: float
    whole: tuple[float, ...]

    columns: ClassVar = (*SCORES, *WHOLE_RULES, "queries")

    @classmethod
    def of(cls, mine: pd.DataFrame) -> _Numbers:
        """From the answers of one method on one task."""
        by_query = mine.groupby("input", sort=False)["correct"].mean().to_numpy(dtype=float)
        by_seed = mine.groupby("seed", sort=False)["correct"].mean().to_numpy(dtype=float)
        even = balanced(mine["correct"].to_numpy(), mine["answer"].to_numpy())
        whole = tuple(float(mine[rule].mean()) if rule in mine else np.nan for rule in WHOLE_RULES)
        return cls(by_query, by_seed, float(mine["strict"].mean()), even, whole)

    @staticmethod
    def row(tasks: Sequence[_Numbers]) -> tuple[Any, ...]:
        """The columns, for the mean over tasks."""
        queries = [one.by_query for one in tasks]
        return (
            float(np.mean([shares.mean() for shares in queries])),
            *bootstrap(queries),
            *over_seeds(np.mean([one.by_seed for one in tasks], axis=0)),
            float(np.mean([one.strict for one in tasks])),
            float(np.mean([one.balanced for one in tasks])),
            *np.mean([one.whole for one in tasks], axis=0).tolist(),
            sum(map(len, queries)),
        )
