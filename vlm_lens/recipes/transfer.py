"""What cross-modal patching gives: accuracies by task and method, and the layer sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vlm_lens.recipes.metric import Scores, bootstrap, majority
from vlm_lens.recipes.result import RecipeError, Result
from vlm_lens.tasks import Task

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Run", "TransferResult", "best_layer", "donors", "result"]

NO_CONTEXT = "No Context"
PROMPT = "Prompt"
PATCH = "Patch"
WRONG_SAME = "Wrong task, same domain"
AS_DONOR = "Wrong task, as that task"
WRONG_OTHER = "Wrong task, other domain"
RANDOM = "Random vector"
MAJORITY = "Majority answer"
METHODS = (
    NO_CONTEXT, PROMPT, PATCH, WRONG_SAME, AS_DONOR, WRONG_OTHER, RANDOM, MAJORITY,
)  # fmt: skip
MEAN = "mean"


@dataclass(frozen=True, eq=False)
class Run:
    """All test rows of a task, answered by one method with one seed (0 where it needs none)."""

    task: Task
    method: str
    seed: int
    answers: Sequence[Sequence[str]]
    scores: Scores


class TransferResult(Result):
    """Accuracies of prompting and patching.

    `table` has one row a task and method, and the mean over tasks; `accuracy` is by the prefix
    rule, `low` and `high` bound its 95 % bootstrap interval over queries, `strict` wants the
    answer's first token. `tables["layers"]` is the sweep on the validation rows,
    `tables["predictions"]` holds every answer (seed 0: the method needs no seed).
    """

    @property
    def layer(self) -> int:
        """The 0-based block whose output is patched."""
        return self.values["layer"]

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

    def summary(self) -> pd.DataFrame:
        """Methods by tasks, as the paper prints them, with the mean's interval and strict rule."""
        wide = self.table.pivot(index="method", columns="task", values="accuracy")
        tasks = list(dict.fromkeys(self.table["task"]))
        methods = list(dict.fromkeys(self.table["method"]))
        wide = wide.loc[methods, tasks].round(3)
        mean = self.table[self.table["task"] == MEAN].set_index("method").loc[methods]
        bounds = zip(mean["low"], mean["high"], strict=True)
        wide["95 %"] = [f"{low:.2f}-{high:.2f}" for low, high in bounds]
        wide["strict"] = mean["strict"].round(3)
        return wide.rename(columns=short_names(tasks)).reset_index().rename_axis(columns=None)

    def plots(self) -> dict[str, go.Figure]:
        """Bars by task, and the layer sweep where there is one."""
        from vlm_lens.figures.recipes import transfer_bars

        sweep = {} if self.layers.empty else {"layer_sweep": self.plot_layers()}
        return {"transfer": transfer_bars(self), **sweep}

    def plot_layers(self) -> go.Figure:
        """Validation accuracy by layer.

        Raises:
            RecipeError: The layer was given, so none was tried.
        """
        from vlm_lens.figures.recipes import layer_sweep

        if self.layers.empty:
            raise RecipeError("There is no sweep: the recipe named its layer. Leave layer=None.")
        return layer_sweep(self)


def short_names(tasks: Sequence[str]) -> dict[str, str]:
    """Task names without their domain, where that leaves them different."""
    short = {task: task.rpartition("-")[2] for task in tasks}
    return short if len(set(short.values())) == len(short) else {task: task for task in tasks}


def donors(task: Task, tasks: Sequence[Task]) -> tuple[Task | None, Task | None]:
    """Another task of the same domain, and one of another domain: those next in the list.

    Args:
        task: The task whose vector is exchanged.
        tasks: The tasks of the recipe; shipped tasks come after them.
    """
    names = [one.name for one in tasks]
    after = names.index(task.name) + 1
    shipped = [Task.load(n) for n in Task.names() if n not in names]
    others = [*tasks[after:], *tasks[: after - 1], *shipped]
    known = {row.input for row in task.test}
    same = (o for o in others if o.domain == task.domain and known <= {r.input for r in o.test})
    other = (o for o in others if o.domain != task.domain)
    return next(same, None), next(other, None)


def best_layer(layers: pd.DataFrame) -> int:
    """The layer of the highest accuracy, averaged over seeds, then tasks; of equals the lowest."""
    by_task = layers.groupby(["task", "layer"])["accuracy"].mean()
    return int(by_task.groupby("layer").mean().round(12).idxmax())


def result(
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
    seeds = ", ".join(map(str, recipe.used_seeds()))
    notes = (
        f"Patched: the output of block {layer} (0-based), at the query's last position; the layer "
        f"{chosen}.",
        f"{recipe.source} -> {recipe.query}, accuracy by the prefix rule, mean over seeds {seeds}; "
        "95 %: bootstrap over queries, for the mean; strict: the answer's first token, for the "
        "mean.",
        "Controls are written at the same place with the norm of the task vector; 'as that task': "
        "the same answers, judged by what the other task asks.",
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
        }
    )


def _table(predictions: pd.DataFrame, tasks: Sequence[Task]) -> pd.DataFrame:
    by_query: dict[tuple[str, str], tuple[np.ndarray, float]] = {}
    for (task, method), mine in predictions.groupby(["task", "method"], sort=False):
        shares = mine.groupby("input", sort=False)["correct"].mean().to_numpy()
        by_query[task, method] = shares, float(mine["strict"].mean())
    for task in tasks:
        answers = [row.answers for row in task.test]
        right = majority([row.output for row in task.test], answers).astype(float)
        by_query[task.name, MAJORITY] = right, float(right.mean())
    rows = []
    for method in dict.fromkeys((*METHODS, *(m for _, m in by_query))):  # others after the known
        mine = {t.name: by_query[t.name, method] for t in tasks if (t.name, method) in by_query}
        for name, (shares, strict) in mine.items():
            rows.append((name, method, shares.mean(), *bootstrap([shares]), strict, len(shares)))
        if len(mine) == len(tasks):
            shares = [one for one, _ in mine.values()]
            mean = float(np.mean([one.mean() for one in shares]))
            strict = float(np.mean([one for _, one in mine.values()]))
            rows.append((MEAN, method, mean, *bootstrap(shares), strict, sum(map(len, shares))))
    columns = ["task", "method", "accuracy", "low", "high", "strict", "queries"]
    return pd.DataFrame(rows, columns=columns)
