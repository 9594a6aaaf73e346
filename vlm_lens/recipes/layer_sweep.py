"""Where the patch works: accuracy by the layer that is patched, on the validation rows.

Luo et al. 2025 (arXiv 2410.22330), Figure 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal

import pandas as pd

from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.recipes.base import Recipe, RecipeError
from vlm_lens.recipes.cross_modal_patch import CrossModalPatch
from vlm_lens.recipes.parts.scoring import accuracy
from vlm_lens.recipes.parts.task_recipe import TaskRecipe
from vlm_lens.recipes.parts.transfer_result import best_layer
from vlm_lens.recipes.parts.vector_sources import Form, Query, Source, few_shot, in_form
from vlm_lens.recipes.result import Result
from vlm_lens.tasks import Task
from vlm_lens.terms import MEAN, short_names

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["LayerSweep", "LayerSweepResult"]


@dataclass(frozen=True)
class LayerSweep(TaskRecipe):
    """Patches the task vector at each layer in turn, for every pair of source and query.

    The vector of each block is written at that same block, as in CrossModalPatch, whose choice of
    a layer this is. Beside it stands the accuracy of prompting on the same rows.

    Attributes:
        tasks: `"all"` for the paper's six, the name of a shipped task, a Task, or several.
        sources: Where tasks are read from: `"text"`, `"image"`, `"description"`, `"instruction"`.
        queries: How queries are given: `"image"`, `"text"`, `"description"`.
        seeds: A number n for seeds 1..n, or the seeds; an instruction takes the first.
        vectors: The mean over all validation prompts, or the vector of a single prompt.
        n_examples: How many examples a prompt has.
        ignore_case: Whether answers are compared without case.
        form: How prompts are written; see CrossModalPatch.
        batch_size: How many prompts run together.
    """

    sources: tuple[Source, ...] = ("text",)
    queries: tuple[Query, ...] = ("image",)
    seeds: int | tuple[int, ...] = 3
    vectors: Literal["mean", "single"] = "mean"
    n_examples: int = 5
    ignore_case: bool = False
    form: Form = "question-answer"
    batch_size: int = 32

    def measure(self, vlm: HookedVLM) -> LayerSweepResult:
        """One sweep for each pair of source and query."""
        layers, prompting = [], []
        for source in self.sources:
            vector = self.transfer(source, self.queries[0]).reader(vlm)  # the same for all queries
            for query in self.queries:
                recipe, pair = self.transfer(source, query), {"source": source, "query": query}
                for task in self.progress(recipe.chosen_tasks(), f"{source} to {query}"):
                    asked = in_form(task, self.form, vlm)
                    layers.append(recipe.sweep(vlm, asked, vector).assign(**pair))
                    for seed in recipe.used_seeds():
                        got = self.prompted(vlm, asked, source, query, seed)
                        prompting.append({**pair, "task": task.name, "seed": seed, "accuracy": got})
        return _result(pd.concat(layers, ignore_index=True), pd.DataFrame(prompting))

    def prompted(
        self, vlm: HookedVLM, task: Task, source: Source, query: Query, seed: int
    ) -> float:
        """Accuracy on the validation rows with what says the task in the prompt."""
        prompts = few_shot(task, source, query, seed=seed, n=self.n_examples, split="validation")
        return accuracy(
            vlm, prompts, [row.answers for row in task.validation], ignore_case=self.ignore_case,
            batch_size=self.batch_size,
        )  # fmt: skip

    def transfer(self, source: Source, query: Query) -> CrossModalPatch:
        """The experiment of one pair."""
        return self.same(CrossModalPatch, source=source, query=query, controls=False)

    def inner(self) -> list[Recipe]:
        """The experiments of all pairs."""
        return [self.transfer(*pair) for pair in product(self.sources, self.queries)]

    def validate(self) -> None:
        """Checks the fields."""
        self.some_different("sources", "queries")


class LayerSweepResult(Result):
    """Validation accuracy by layer.

    `table` has one row for each `source`, `query`, `task` (and their `mean`) and `layer`, a 0-based
    block: `accuracy` by the prefix rule, mean over seeds, `sd` over seeds (NaN with one), and
    `prompting`, the accuracy with the examples in the prompt. `tables["seeds"]` has every seed.
    """

    def best(self, source: str = "text", query: str = "image") -> int:
        """The layer of the highest mean over tasks; of equals the lowest.

        Raises:
            RecipeError: This pair was not tried.
        """
        try:
            return self.values["best"][f"{source} -> {query}"]
        except KeyError:
            listed = ", ".join(self.values["best"])
            raise RecipeError(f"{source} -> {query} was not tried; there is {listed}.") from None

    def summary(self) -> pd.DataFrame:
        """For each pair, the best layer, and there the accuracy by task, beside prompting."""
        rows = []
        for pair, best in self.values["best"].items():
            source, _, query = pair.partition(" -> ")
            mine = self.table.query("source == @source and query == @query and layer == @best")
            labels = {"accuracy": f"{pair}, block {best}", "prompting": "prompting"}
            for column, label in labels.items():
                rows.append({"": label, **dict(zip(mine["task"], mine[column], strict=True))})
        return pd.DataFrame(rows).rename(
            columns=short_names(list(dict.fromkeys(self.table["task"])))
        )

    def plots(self) -> dict[str, go.Figure]:
        """Accuracy against the layer, one panel a pair."""
        from vlm_lens.figures.layers import Panel, layer_figure

        panels = []
        for pair, best in self.values["best"].items():
            source, _, query = pair.partition(" -> ")
            mine = self.tables["seeds"].query("source == @source and query == @query")
            prompted = self.table.query("source == @source and query == @query and task != @MEAN")
            prompting = prompted.groupby("task")["prompting"].first().to_dict()
            panels.append(Panel(f"{source} → {query}", mine, best, prompting))
        title = "Where the patch works" + (f": {panels[0].title}" if len(panels) == 1 else "")
        label = "Validation rows; mean over seeds, band: one standard deviation over seeds"
        return {"layer_sweep": layer_figure(panels, title=title, subtitle=label)}


def _result(seeds: pd.DataFrame, prompting: pd.DataFrame) -> LayerSweepResult:
    """Means over seeds and tasks, and each pair's best layer."""
    pair, rows, best = ["source", "query"], [], {}
    by_task = _with_mean(prompting, [*pair, "seed"]).groupby([*pair, "task"], sort=False)
    prompted = by_task["accuracy"].mean().rename("prompting")
    for (source, query), mine in seeds.groupby(pair, sort=False):
        best[f"{source} -> {query}"] = best_layer(mine)
    by = _with_mean(seeds, [*pair, "seed", "layer"]).groupby([*pair, "task", "layer"], sort=False)
    rows = by["accuracy"].agg(accuracy="mean", sd="std").reset_index()
    table = rows.merge(prompted.reset_index(), on=[*pair, "task"])
    notes = (
        "Accuracy on the validation rows by the prefix rule, at the best layer of each pair: the "
        "highest mean over seeds, then tasks, of equals the lowest. Layers are 0-based blocks.",
    )
    return LayerSweepResult(table, {"seeds": seeds}, {"best": best}, notes)


def _with_mean(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The table, and the mean over tasks as one task more."""
    mean = table.groupby(by, sort=False)["accuracy"].mean().reset_index().assign(task=MEAN)
    return pd.concat([table, mean], ignore_index=True)
