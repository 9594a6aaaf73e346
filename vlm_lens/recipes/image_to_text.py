"""From pictures to words: a task shown in pictures, asked about a dense description.

Luo et al. 2025 (arXiv 2410.22330), appendix A.7 and Figure 11, which shows three cases; here it is
counted on the tasks. `Qualitative(source="image", query="description")` shows cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.recipes.base import Recipe
from vlm_lens.recipes.cross_modal_patch import CrossModalPatch
from vlm_lens.recipes.parts.controls import Control
from vlm_lens.recipes.parts.predict import first_tokens
from vlm_lens.recipes.parts.scoring import score
from vlm_lens.recipes.parts.task_recipe import TaskRecipe
from vlm_lens.recipes.parts.transfer_result import Run, TransferResult, transfer_result
from vlm_lens.recipes.parts.vector_sources import few_shot
from vlm_lens.tasks import Task
from vlm_lens.terms import TEXT_PROMPT

__all__ = ["ImageToText"]


@dataclass(frozen=True)
class ImageToText(TaskRecipe):
    """CrossModalPatch from pictures to texts, beside prompting with the same kind of texts.

    *Prompt* shows pictures and then the text, *Patch* writes the pictures' task vector into the
    text alone, and *Prompt, examples in text* is the reference within one modality.

    Attributes:
        tasks: `"all"` for the paper's six, the name of a shipped task, a Task, or several.
        query: Whether a query is a dense description, on the rows that have one, or a name.
        seeds: A number n for seeds 1..n, or the seeds.
        layer: The 0-based block whose output is replaced; chosen on the validation rows if None.
        n_examples: How many examples a prompt has; three in the paper.
        ignore_case: Whether answers are compared without case.
        controls: All or none of the controls, or which; see CrossModalPatch.
        batch_size: How many prompts run together.
    """

    query: Literal["description", "text"] = "description"
    seeds: int | tuple[int, ...] = 3
    layer: int | None = None
    n_examples: int = 3
    ignore_case: bool = False
    controls: bool | tuple[str | Control, ...] = True
    batch_size: int = 32

    def measure(self, vlm: HookedVLM) -> TransferResult:
        """CrossModalPatch's steps, and one method more."""
        recipe = self.transfer()
        tasks, vector = recipe.chosen_tasks(), recipe.reader(vlm)
        layer, layers = recipe.chosen_layer(vlm, tasks, vector)
        runs: list[Run] = []
        for task in self.progress(tasks, "patch and prompt"):
            runs += recipe.test(vlm, task, layer, vector)
            runs += [self.prompted(vlm, task, seed) for seed in self.used_seeds()]
        return transfer_result(runs, layers, layer, recipe)

    def prompted(self, vlm: HookedVLM, task: Task, seed: int) -> Run:
        """All test rows, answered with examples given as the queries are."""
        prompts = few_shot(task, self.query, self.query, seed=seed, n=self.n_examples)
        answers: Sequence[Sequence[str]] = [row.answers for row in task.test]
        predicted = first_tokens(vlm, prompts, batch_size=self.batch_size)[0]
        scores = score(vlm, predicted, answers, ignore_case=self.ignore_case)
        return Run(task, TEXT_PROMPT, seed, answers, scores)

    def transfer(self) -> CrossModalPatch:
        """The experiment from pictures to texts."""
        return self.same(CrossModalPatch, source="image")

    def inner(self) -> tuple[Recipe, ...]:
        """The experiment from pictures to texts."""
        return (self.transfer(),)
