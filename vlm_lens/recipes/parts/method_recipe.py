"""What recipes that set a method beside the paper's share: tasks, queries, judging, one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.recipes.base import Recipe, RecipeError
from vlm_lens.recipes.cross_modal_patch import CrossModalPatch
from vlm_lens.recipes.parts.controls import Control
from vlm_lens.recipes.parts.predict import first_tokens
from vlm_lens.recipes.parts.scoring import score
from vlm_lens.recipes.parts.task_recipe import TaskRecipe
from vlm_lens.recipes.parts.transfer_result import Run, TransferResult, transfer_result
from vlm_lens.tasks import Task

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["MethodRecipe", "MethodResult", "side_by_side"]

Methods = Mapping[tuple[str, int], Any]  # (method, seed) -> interventions


@dataclass(frozen=True)
class MethodRecipe(TaskRecipe):
    """A method on the rows, queries and rules of CrossModalPatch, and that recipe's numbers beside.

    A subclass gives the interventions of its method; every method is judged alike, and all stand in
    one table with the columns of `TransferResult`.

    Attributes:
        tasks: `"all"` for the paper's six, the name of a shipped task, a Task, or several.
        source: Whether examples are given by name or by picture.
        query: Whether queries are given by name or by picture.
        seeds: A number n for seeds 1..n, or the seeds.
        layer: The 0-based block that CrossModalPatch writes to; chosen on the validation rows if
            None.
        n_examples: How many examples a prompt has.
        ignore_case: Whether answers are compared without case.
        controls: Controls of the patch: all, none, or which; see CrossModalPatch.
        batch_size: How many prompts run together.
    """

    source: Literal["text", "image"] = "text"
    query: Literal["image", "text"] = "image"
    seeds: int | tuple[int, ...] = 3
    layer: int | None = None
    n_examples: int = 5
    ignore_case: bool = False
    controls: bool | tuple[str | Control, ...] = True
    batch_size: int = 32

    def paper(self, **changes: Any) -> CrossModalPatch:
        """CrossModalPatch with the same settings.

        Args:
            **changes: Fields to set otherwise.
        """
        return self.same(CrossModalPatch, **{"source_model": None, **changes})

    def inner(self) -> tuple[Recipe, ...]:
        """CrossModalPatch with the same settings."""
        return (self.paper(),)

    def runs(
        self,
        vlm: HookedVLM,
        task: Task,
        methods: Methods,
        *,
        split: Literal["validation", "test"] = "test",
        prompts: Sequence[RawPrompt] | None = None,
        what: str = "methods",
    ) -> list[Run]:
        """The rows of a split, answered under each intervention and judged.

        Args:
            vlm: A HookedVLM.
            task: The task.
            methods: (Method, seed) -> what to change; `()` changes nothing.
            split: Whose rows.
            prompts: One prompt a row; by default the bare queries.
            what: What the progress bar says.
        """
        rows = task.rows(split)
        prompts = [task.query(row, self.query) for row in rows] if prompts is None else prompts
        answers = [row.answers for row in rows]
        tokens = first_tokens(
            vlm, prompts, list(methods.values()), batch_size=self.batch_size,
            progress=lambda batches: self.progress(batches, f"{task.name}: {what}"),
        )  # fmt: skip
        scores = score(vlm, tokens, answers, ignore_case=self.ignore_case)
        return [Run(task, *key, answers, scores[i]) for i, key in enumerate(methods)]


class MethodResult(TransferResult):
    """Accuracies of methods, those of CrossModalPatch first; see `TransferResult`."""

    def plots(self) -> dict[str, go.Figure]:
        """Methods one below another, then bars by task, and the layer sweep where there is one."""
        plots = super().plots()
        return {"methods": plots.pop("methods"), **plots}


def with_methods(
    reference: TransferResult,
    runs: Sequence[Run],
    recipe: MethodRecipe,
    *,
    kind: type[MethodResult] = MethodResult,
    tables: Mapping[str, pd.DataFrame] | None = None,
    values: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> MethodResult:
    """One result from the paper's methods and a recipe's own.

    Args:
        reference: What CrossModalPatch gave.
        runs: The recipe's own, on the same rows.
        recipe: The recipe.
        kind: The class of the result.
        tables: Further tables.
        values: Further facts.
        notes: What a reader must know of the method.
    """
    mine = transfer_result(runs, None, reference.layer, recipe)
    known = set(reference.table["method"])
    table = pd.concat([reference.table, mine.table[~mine.table["method"].isin(known)]])
    predictions = pd.concat([reference.predictions, mine.predictions])
    return kind(
        table.reset_index(drop=True),
        {**reference.tables, "predictions": predictions.reset_index(drop=True), **(tables or {})},
        {**reference.values, **(values or {})},
        (*reference.notes, *notes),
    )


def side_by_side(*results: TransferResult | Sequence[TransferResult]) -> MethodResult:
    """Several results on the same queries as one: every method once, the first result's first.

    Args:
        *results: Results of CrossModalPatch and of recipes that set a method beside it, or one
            list of them.

    Raises:
        RecipeError: They are of different models, tasks, sources or queries.
    """
    if len(results) == 1 and isinstance(results[0], Sequence):
        (results,) = results
    if not results:
        raise RecipeError("side_by_side needs at least one result.")
    first, known, tables, predictions = results[0], set(), [], []
    for one in results:
        for what, mine, theirs in zip(
            ("model", "source", "query", "tasks"), _same(first), _same(one), strict=True
        ):
            if mine != theirs:
                raise RecipeError(
                    f"Results of different {what} cannot stand side by side: {mine} and {theirs}."
                )
        for parts, table in ((tables, one.table), (predictions, one.predictions)):
            parts.append(table[~table["method"].isin(known)])
        known |= set(one.table["method"])
    notes = dict.fromkeys(note for one in results for note in one.notes)
    return MethodResult(
        pd.concat(tables, ignore_index=True),
        {"layers": first.layers, "predictions": pd.concat(predictions, ignore_index=True)},
        first.values,
        tuple(notes),
        {"results": [dict(one.provenance) for one in results],
         "model": first.provenance.get("model", {})},
    )  # fmt: skip


def _same(result: TransferResult) -> tuple[Any, ...]:
    model = result.provenance.get("model", {})
    where = {name: model.get(name) for name in ("name", "revision", "dtype", "unembed_hash")}
    queries = result.table.groupby("task", sort=True)["queries"].max().to_dict()
    return where, result.values["source"], result.values["query"], queries
