"""Vectors of an instruction, of more and more examples, and of both together.

Luo et al. 2025 (arXiv 2410.22330), section 4.3 and Figure 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from torch import Tensor

from vlm_lens.layout.positions import Last
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.reading.many import read_each
from vlm_lens.recipes.base import Recipe, RecipeError
from vlm_lens.recipes.cross_modal_patch import CrossModalPatch
from vlm_lens.recipes.parts.predict import first_tokens
from vlm_lens.recipes.parts.scoring import score
from vlm_lens.recipes.parts.task_recipe import TaskRecipe
from vlm_lens.recipes.parts.vector_sources import Query, TaskVectors
from vlm_lens.recipes.result import Result
from vlm_lens.tasks import Task
from vlm_lens.tasks.draws import draw_one
from vlm_lens.terms import AVERAGED, ENSEMBLE, EXAMPLES, IN_CONTEXT, INSTRUCTION, MEAN

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["EnsembleResult", "InstructionEnsemble"]


@dataclass(frozen=True)
class InstructionEnsemble(TaskRecipe):
    """Patches the vector of an instruction, of n examples, and the mean of the two.

    The number n has two meanings, and both are run. *Averaged*, as in the paper's code: prompts of
    `n_examples` each (five in the paper), as many as give n examples, drawn from the validation
    prompts, their vectors averaged. *In context*: one prompt that shows n examples, the last one's
    answer open.

    Attributes:
        tasks: `"all"` for the paper's six, the name of a shipped task, a Task, or several.
        source: Whether examples are given by name, picture or description.
        query: Whether queries are given by picture, name or description.
        counts: The numbers n, multiples of `n_examples`.
        meanings: Which meanings of n are run.
        seeds: A number n for seeds 1..n, or the seeds; the instruction needs none.
        layer: The 0-based block whose output is replaced; if None, the best on the validation rows
            for the mean vector of all prompts.
        n_examples: How many examples an averaged prompt has.
        ignore_case: Whether answers are compared without case: an instruction cannot show it.
        batch_size: How many prompts run together.
    """

    source: Literal["text", "image", "description"] = "text"
    query: Query = "image"
    counts: tuple[int, ...] = (5, 10, 15, 20, 25, 30)
    meanings: tuple[Literal["averaged", "in context"], ...] = (AVERAGED, IN_CONTEXT)
    seeds: int | tuple[int, ...] = 3
    layer: int | None = None
    n_examples: int = 5
    ignore_case: bool = True
    batch_size: int = 32

    def measure(self, vlm: HookedVLM) -> EnsembleResult:
        """The layer, then every vector in one sweep a task."""
        recipe = self.transfer()
        tasks, vectors = recipe.chosen_tasks(), recipe.reader(vlm)
        layer, _ = recipe.chosen_layer(vlm, tasks, vectors)
        found = []
        for task in self.progress(tasks, "vectors and their patches"):
            values = self.values(vlm, task, layer, vectors)
            patches = [recipe.patch(layer, value) for value in values.values()]
            queries = [task.query(row, self.query) for row in task.test]
            predicted = first_tokens(vlm, queries, patches, batch_size=self.batch_size)
            answers = [row.answers for row in task.test]
            right = score(vlm, predicted, answers, ignore_case=self.ignore_case)
            for key, mean in zip(values, right.correct.mean(1), strict=True):
                found.append((*key, task.name, float(mean)))
        columns = ["method", "meaning", "n", "seed", "task", "accuracy"]
        return _result(pd.DataFrame(found, columns=columns), layer, self.n_examples)

    def values(
        self, vlm: HookedVLM, task: Task, layer: int, vectors: TaskVectors
    ) -> dict[tuple, Tensor]:
        """Each vector at the layer, by method, meaning, n and seed."""
        from_instruction = TaskVectors(vlm, "instruction")(task, 1).layer(layer)
        values: dict[tuple, Tensor] = {(INSTRUCTION, "", 0, 0): from_instruction}
        for seed in self.used_seeds():
            for meaning, n, shown in self.shown(vlm, task, layer, vectors, seed):
                values[EXAMPLES, meaning, n, seed] = shown
                values[ENSEMBLE, meaning, n, seed] = (shown + from_instruction) / 2
        return values

    def shown(
        self, vlm: HookedVLM, task: Task, layer: int, vectors: TaskVectors, seed: int
    ) -> Iterator[tuple[str, int, Tensor]]:
        """The vectors of n examples, in each meaning of n."""
        if AVERAGED in self.meanings:
            each = vectors.each(task, seed)[:, layer]
            order = np.random.RandomState(seed).permutation(len(each))
            for n in self.counts:
                yield AVERAGED, n, each[order[: n // self.n_examples]].mean(0)
        if IN_CONTEXT in self.meanings:
            rows, prompts = task.validation, []
            for n in self.counts:
                *full, last = (rows[i] for i in draw_one(len(rows), n, seed=seed))
                pairs = [(row.given(self.source), row.output) for row in full]
                prompts.append(task.template.build(pairs, last.given(self.source)))
            read = read_each(vlm, prompts, at=Last(), batch_size=self.batch_size)[:, layer]
            yield from ((IN_CONTEXT, n, one) for n, one in zip(self.counts, read, strict=True))

    def transfer(self) -> CrossModalPatch:
        """The experiment with the mean vector of all validation prompts."""
        return self.same(CrossModalPatch, controls=False)

    def inner(self) -> tuple[Recipe, ...]:
        """The experiment with the mean vector of all validation prompts."""
        return (self.transfer(),)

    def validate(self) -> None:
        """Checks the fields."""
        self.some_different("counts", "meanings")
        wrong = [n for n in self.counts if n < 1 or n % self.n_examples]
        if wrong:
            raise RecipeError(
                f"InstructionEnsemble.counts has {wrong[0]}; a count is a multiple of n_examples, "
                f"{self.n_examples}, from {self.n_examples} on."
            )
        most = (
            max(self.counts) if IN_CONTEXT in self.meanings else max(self.counts) // self.n_examples
        )
        rows, _, _ = self.fewest_rows("validation")
        if most > rows:
            raise RecipeError(
                f"InstructionEnsemble.counts goes to {max(self.counts)}, which takes {most} "
                f"validation rows; a task has {rows}."
            )


class EnsembleResult(Result):
    """Accuracy of the instruction's vector, of the examples' and of their ensemble.

    `table` has one row for each `method`, `meaning` of n, `n` and `task` (and their `mean`):
    `accuracy`, mean over seeds, and `sd` over seeds (NaN with one). The instruction has n = 0 and
    no meaning of n. `tables["seeds"]` has every seed.
    """

    def accuracy(self, method: str, n: int = 0, meaning: str = AVERAGED, task: str = MEAN) -> float:
        """One number of the table.

        Raises:
            RecipeError: It was not measured.
        """
        meaning = "" if method == INSTRUCTION else meaning
        found = self.table.query(
            "method == @method and n == @n and meaning == @meaning and task == @task"
        )
        if found.empty:
            raise RecipeError(f"There is no {method!r} with n={n}, {meaning!r}, for {task!r}.")
        return float(found["accuracy"].iloc[0])

    def summary(self) -> pd.DataFrame:
        """The mean over tasks by n, with the standard deviation over seeds."""
        mean = self.table[self.table["task"] == MEAN]
        rows = []
        for (method, meaning), mine in mean.groupby(["method", "meaning"], sort=False):
            spread = ["" if np.isnan(sd) else f" ±{sd:.3f}" for sd in mine["sd"]]
            cells = zip(mine["n"], mine["accuracy"], spread, strict=True)
            shown = {f"n = {n}": f"{accuracy:.3f}{sd}" for n, accuracy, sd in cells}
            rows.append({"vector": f"{method}, {meaning}" if meaning else method, **shown})
        columns = ["vector", *(f"n = {n}" for n in sorted(set(mean["n"])))]
        return pd.DataFrame(rows)[columns].fillna("")

    def plots(self) -> dict[str, go.Figure]:
        """Accuracy against the number of examples."""
        from vlm_lens.figures.ensemble import ensemble_curves

        return {"ensemble": ensemble_curves(self.table, layer=self.values["layer"])}


def _result(seeds: pd.DataFrame, layer: int, n_examples: int) -> EnsembleResult:
    key = ["method", "meaning", "n"]
    mean = seeds.groupby([*key, "seed"], sort=False)["accuracy"].mean().reset_index()
    both = pd.concat([seeds, mean.assign(task=MEAN)], ignore_index=True)
    by = both.groupby([*key, "task"], sort=False)["accuracy"]
    table = by.agg(accuracy="mean", sd="std").reset_index()
    notes = (
        f"Patched: the output of block {layer} (0-based), at the query's last position. Accuracy "
        "on the test rows by the prefix rule, mean and standard deviation over seeds.",
        f"n, averaged: n / {n_examples} prompts of {n_examples} examples, their vectors averaged; "
        "n, in context: one prompt of n examples. Ensemble: the mean of the examples' and the "
        "instruction's vector.",
    )
    return EnsembleResult(table, {"seeds": seeds}, {"layer": layer}, notes)
