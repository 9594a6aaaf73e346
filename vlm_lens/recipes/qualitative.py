"""What the model says: pictures, prompts and outputs side by side.

Luo et al. 2025 (arXiv 2410.22330), Figures 4 and 11; with a question in the query, Figure 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.recipes.base import Recipe, RecipeError
from vlm_lens.recipes.cross_modal_patch import CrossModalPatch
from vlm_lens.recipes.parts.scoring import prefix_match
from vlm_lens.recipes.parts.task_recipe import TaskRecipe
from vlm_lens.recipes.parts.vector_sources import Query, Source
from vlm_lens.recipes.result import Result
from vlm_lens.tasks import Task
from vlm_lens.tasks.rows import Row
from vlm_lens.terms import NO_CONTEXT, PATCH, PROMPT
from vlm_lens.tokens import IMAGE

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Qualitative", "QualitativeResult"]


@dataclass(frozen=True)
class Qualitative(TaskRecipe):
    r"""Generates a few tokens for a few queries, as they are, prompted and patched.

    - *No Context*: the query alone.
    - *Prompt*: what says the task, and the query, in one context.
    - *Patch*: the query alone with the task vector at its last position, after one block.

    Attributes:
        tasks: `"all"` for the paper's six, the name of a shipped task, a Task, or several.
        source: Where the task is read from: examples by name, picture or description, or the
            instruction.
        query: Whether queries are given by picture, name or description.
        rows: How many test rows of each task, from the first on; or which, by their inputs.
        question: A text after the input of each query, `Q:{input}{question}\nA:`: with the
            instruction of another task as source, it is what that task overrides (Figure 7).
        layer: The 0-based block whose output is replaced; chosen on the validation rows if None.
        vectors: The mean over all validation prompts, or the vector of a single prompt.
        seed: The seed of the examples.
        n_examples: How many examples a prompt has.
        max_new_tokens: How many tokens are generated.
        batch_size: How many prompts run together.
    """

    source: Source = "text"
    query: Query = "image"
    rows: int | tuple[str, ...] = 3
    question: str = ""
    layer: int | None = None
    vectors: Literal["mean", "single"] = "mean"
    seed: int = 1
    n_examples: int = 5
    max_new_tokens: int = 5
    batch_size: int = 32

    def measure(self, vlm: HookedVLM) -> QualitativeResult:
        """The layer, then the outputs of every task."""
        recipe = self.transfer()
        tasks, vector = recipe.chosen_tasks(), recipe.reader(vlm)
        layer, _ = recipe.chosen_layer(vlm, tasks, vector)
        found, pictures = [], []
        for task in self.progress(tasks, "outputs"):
            rows = self.chosen_rows(task)
            queries = [self.asked(task.query(row, self.query), row) for row in rows]
            shown = recipe.prompts(task, self.seed)
            prompts = [self.asked(shown[task.test.index(row)], row) for row in rows]
            patch = recipe.patch(layer, vector(task, self.seed))
            for method, given, edit in (
                (NO_CONTEXT, queries, ()), (PROMPT, prompts, ()), (PATCH, queries, patch),
            ):  # fmt: skip
                outputs = self.generated(vlm, given, edit)
                for row, prompt, output in zip(rows, given, outputs, strict=True):
                    right = prefix_match(output.partition("\n")[0], row.answers)
                    about = (task.name, row.input, method, prompt.text, output, row.output, right)
                    found.append(about)
            if self.query == "image":
                pictures += [(task.name, row.input, _uri(row)) for row in rows]
        columns = ["task", "input", "method", "prompt", "output", "answer", "right"]
        notes = (
            f"{self.source} -> {self.query}; patched: the output of block {layer} (0-based), at "
            f"the query's last position. Up to {self.max_new_tokens} tokens, greedily. Right: the "
            "first line and the answer begin one another.",
        )
        return QualitativeResult(
            pd.DataFrame(found, columns=columns),
            {"pictures": pd.DataFrame(pictures, columns=["task", "input", "picture"], dtype="str")},
            {"layer": layer, "source": self.source, "query": self.query},
            notes,
        )

    def generated(self, vlm: HookedVLM, prompts: Sequence[RawPrompt], edit: Any) -> list[str]:
        """What the model says to each prompt, without space around it."""
        generated: list[str] = []
        for start in range(0, len(prompts), self.batch_size):
            batch = list(prompts[start : start + self.batch_size])
            made = vlm.generate(batch, max_new_tokens=self.max_new_tokens, interventions=edit)
            generated += [text.strip() for text in made.text]
        return generated

    def asked(self, prompt: RawPrompt, row: Row) -> RawPrompt:
        """The prompt with the question after its last input."""
        if not self.question:
            return prompt
        given = IMAGE if self.query == "image" else f"{row.given(self.query)}"
        before, _, after = prompt.text.rpartition(given)
        space = "" if self.query == "image" else " "
        return RawPrompt(f"{before}{given}{space}{self.question}{after}", prompt.images)

    def chosen_rows(self, task: Task) -> list[Row]:
        """The rows that the field `rows` means."""
        if isinstance(self.rows, int):
            return list(task.test[: self.rows])
        return [row for row in task.test if row.input in self.rows]

    def transfer(self) -> CrossModalPatch:
        """The experiment that the outputs are of."""
        return self.same(CrossModalPatch, seeds=(self.seed,), controls=False)

    def inner(self) -> tuple[Recipe, ...]:
        """The experiment that the outputs are of."""
        return (self.transfer(),)

    def validate(self) -> None:
        """Checks the fields."""
        if self.rows == () or (isinstance(self.rows, int) and self.rows < 1):
            raise RecipeError(f"Qualitative.rows is {self.rows!r}; at least one.")
        self.at_least(1, "max_new_tokens")
        tasks = self.chosen_tasks()
        known = {row.input for task in tasks for row in task.test}
        for name in () if isinstance(self.rows, int) else self.rows:
            if name not in known:
                raise RecipeError(
                    f"Qualitative.rows names {name!r}, which is no test row of "
                    f"{', '.join(task.name for task in tasks)}."
                )


class QualitativeResult(Result):
    """Outputs, and the pictures that they are for.

    `table` has one row for each `task`, `input` and `method`: the `prompt`, the `output`, the
    `answer` and whether the output is `right`. `tables["pictures"]` has each query's `picture`, as
    a data URI of a PNG.
    """

    def summary(self) -> pd.DataFrame:
        """One line a query: the output of each method, and the answer."""
        wide = self.table.pivot(index=["task", "input"], columns="method", values="output")
        first = self.table.drop_duplicates(["task", "input"])
        wide = wide.loc[list(zip(first["task"], first["input"], strict=True))]
        wide = wide[list(dict.fromkeys(self.table["method"]))]
        wide["answer"] = first["answer"].to_list()
        return wide.reset_index().rename_axis(columns=None)

    def plots(self) -> dict[str, go.Figure]:
        """The table with its pictures."""
        from vlm_lens.figures.qualitative import outputs_figure

        return {"outputs": outputs_figure(self.table, self.tables["pictures"], **self.values)}

    def _repr_html_(self) -> str:
        from vlm_lens.figures.qualitative import outputs_html

        pictures = self.tables["pictures"]
        return outputs_html(self.table, pictures, title=self.title, notes=self.notes)


def _uri(row: Row) -> str:
    from vlm_lens.figures.prompt_view import picture_uri

    return picture_uri(row.image, most=96)
