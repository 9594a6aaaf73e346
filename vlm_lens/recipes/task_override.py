"""Task overriding: a prompt asks for one task, and is made to do another.

Luo et al. 2025 (arXiv 2410.22330), section 4.5, Table 5 and Figures 7 and 9.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from vlm_lens.interventions import ActivationPatch
from vlm_lens.layout.positions import Last
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.reading.many import read_each
from vlm_lens.recipes.base import Recipe, RecipeError
from vlm_lens.recipes.cross_modal_patch import CrossModalPatch
from vlm_lens.recipes.parts.identity import digest
from vlm_lens.recipes.parts.judges import Case, Endpoint, ExactRules, Judge, Wanted, as_judge
from vlm_lens.recipes.parts.override_result import OverrideItem, OverrideResult, result, verdicts
from vlm_lens.recipes.parts.task_recipe import TaskRecipe
from vlm_lens.tasks import Task
from vlm_lens.terms import (
    INSTRUCTION_PATCH,
    INSTRUCTION_RANDOM,
    ORIGINAL_TASK,
    SYSTEM_PROMPT,
    WRONG_INSTRUCTION_PATCH,
)
from vlm_lens.tokens import IMAGE

__all__ = ["OverrideItem", "OverrideResult", "TaskOverride"]


@dataclass(frozen=True)
class TaskOverride(TaskRecipe):
    r"""Asks for one task, and sets another against it, as words or as a vector.

    - *Original Task*: the prompt alone.
    - *+ System Prompt*: the other task's instruction, an empty line, the prompt.
    - *+ Instruction Patch*: the prompt, and at its last position, at the output of one block, the
      vector of the other instruction, read at its last token from the instruction alone.
    - Controls at the same place: the vector of a third instruction, and a random one, as long.

    A judge says which task each answer tries to do; what is counted is the share that does the
    other one, alone or with the original (`accuracy`). `strict` counts answers that are also right
    for the input, where that is known. The paper has free answers to questions about photographs,
    judged by GPT-4o; pass such data as `items`, with a judge. Here tasks over the same inputs are
    set against one another, whose answers are known.

    Attributes:
        tasks: `"all"` for the paper's six, a Task, or several by name; every ordered pair of tasks
            over the same inputs is a pair of original and overriding task.
        items: Data of one's own instead, with a layer.
        query: Whether inputs are given by picture or by name.
        original: How the prompt asks for its task: as the paper's question,
            `Q:{input}{task}?\nA:`; by the instruction, a line break and `Q:{input}\nA:`; or by
            text examples. The small models of the zoo know no questions.
        layer: The 0-based block whose output is replaced; if None, the best on the validation rows
            for bare queries.
        rows: How many test rows of each pair are used at the most; all if None.
        max_new_tokens: How long answers are.
        judge: `"exact"`, the URL of an OpenAI-compatible endpoint, or a function of a `Case`.
        judge_model: The model at the endpoint.
        controls: Whether the controls are run.
        seed: The seed of random vectors and of examples.
        batch_size: How many prompts run together.
    """

    items: tuple[OverrideItem, ...] = ()
    query: Literal["image", "text"] = "image"
    original: Literal["question", "instruction", "examples"] = "question"
    layer: int | None = None
    rows: int | None = None
    max_new_tokens: int = 10
    judge: Any = "exact"
    judge_model: str | None = None
    controls: bool = True
    seed: int = 1
    batch_size: int = 32

    def measure(self, vlm: HookedVLM) -> OverrideResult:
        """Answers of every method, then the judge."""
        judge, items = self.used_judge(), self.used_items()
        paper = self.paper()
        layer, _ = paper.chosen_layer(vlm, self.chosen(), paper.reader(vlm))
        prompts = [item.prompt or RawPrompt(*self.asked(item)) for item in items]
        system = [
            RawPrompt(f"{item.overriding.question}\n\n{p.text}", p.images)
            for item, p in zip(items, prompts, strict=True)
        ]
        outputs = {
            ORIGINAL_TASK: self.answers(vlm, prompts, None, layer, ORIGINAL_TASK),
            SYSTEM_PROMPT: self.answers(vlm, system, None, layer, SYSTEM_PROMPT),
        }
        for method, vectors in self.vectors(vlm, items, layer).items():
            outputs[method] = self.answers(vlm, prompts, vectors, layer, method)
        answers = pd.concat(
            [
                verdicts(judge, method, items, self.progress(texts, f"judge: {method}"))
                for method, texts in outputs.items()
            ],
            ignore_index=True,
        )
        return result(answers, layer, judge)

    # ------------------------------------------------------------------ the steps

    def asked(self, item: OverrideItem) -> tuple[str, tuple[Image.Image, ...]]:
        """The prompt's text and pictures, in the form that `original` names."""
        pictured = not isinstance(item.given, str)
        given, images = (IMAGE, (item.given,)) if pictured else (item.given, ())
        task = item.original.question
        if self.original == "instruction":
            return f"{task}\nQ:{given}\nA:", images
        question = f"{task[:-1]}?" if task.endswith(":") else task
        return f"Q:{given}{'' if pictured else ' '}{question}\nA:", images

    def vectors(
        self, vlm: HookedVLM, items: Sequence[OverrideItem], layer: int
    ) -> dict[str, Tensor]:
        """What is written, by method: a vector for each item, `[items, d_model]`."""
        names = list(dict.fromkeys(item.overriding.question for item in items))
        read = read_each(
            vlm, [RawPrompt(name) for name in names], at=Last(), batch_size=self.batch_size
        )[:, layer]
        mine = [names.index(item.overriding.question) for item in items]
        found = {INSTRUCTION_PATCH: read[mine]}
        if self.controls:
            third = [_third(i, names, item) for i, item in zip(mine, items, strict=True)]
            if None not in third:
                found[WRONG_INSTRUCTION_PATCH] = _as_long(read[third], found[INSTRUCTION_PATCH])
            generator = torch.Generator().manual_seed(self.seed)
            noise = torch.randn(read.shape[-1], generator=generator)
            found[INSTRUCTION_RANDOM] = _as_long(
                noise.expand(len(items), -1), found[INSTRUCTION_PATCH]
            )
        return found

    def answers(
        self,
        vlm: HookedVLM,
        prompts: Sequence[RawPrompt],
        vectors: Tensor | None,
        layer: int,
        what: str,
    ) -> list[str]:
        """What the model says to each prompt, each with its own vector if there are any."""
        texts: list[str] = []
        for start in self.progress(range(0, len(prompts), self.batch_size), what):
            batch = slice(start, start + self.batch_size)
            patch = () if vectors is None else ActivationPatch(
                f"blocks.{layer}.hook_resid_post", at=Last(), value=vectors[batch, None]
            )  # fmt: skip
            texts += vlm.generate(
                list(prompts[batch]), max_new_tokens=self.max_new_tokens, interventions=patch
            ).text
        return texts

    # ------------------------------------------------------------------ fields

    def paper(self) -> CrossModalPatch:
        """The recipe that chooses the layer."""
        return self.same(CrossModalPatch, source="instruction")

    def inner(self) -> tuple[Recipe, ...]:
        """The recipe that chooses the layer; what is asked of items of one's own needs none."""
        return () if self.items else (self.paper(),)

    def chosen(self) -> tuple[Task, ...]:
        """The tasks that are in a pair."""
        pairs = pairs_of(self.chosen_tasks())
        return tuple(dict.fromkeys(task for pair in pairs for task in pair))

    def used_items(self) -> tuple[OverrideItem, ...]:
        """The items: one's own, or those of the pairs of tasks."""
        if self.items:
            return self.items
        pairs = pairs_of(self.chosen_tasks())
        return tuple(item for pair in pairs for item in self.paired(*pair))

    def paired(self, original: Task, overriding: Task) -> Iterable[OverrideItem]:
        """The items of one pair of tasks, one for each test row."""
        labels = {
            task: tuple(dict.fromkeys(a for row in task for a in row.answers))
            for task in (original, overriding)
        }
        prompts: Sequence[RawPrompt | None] = [None] * len(original.test)
        if self.original == "examples":
            prompts = original.example_sets(
                "text", seed=self.seed, target_modality=self.query, split="test"
            )
        for row, prompt in list(zip(original.test, prompts, strict=True))[: self.rows]:
            first, second = (
                Wanted(task.instruction, task[row.input].answers, labels[task])
                for task in (original, overriding)
            )
            group = f"{original.name} → {overriding.name}"
            yield OverrideItem(row.given(self.query), first, second, prompt, group, row.input)

    def used_judge(self) -> Judge:
        """The judge that the fields mean."""
        return as_judge(self.judge, self.judge_model)

    def validate(self) -> None:
        """Checks the fields."""
        if isinstance(judge := self.used_judge(), ExactRules):
            for item in self.items:  # what is not known is said before any run
                judge(Case("", item.original, item.overriding))
        if self.items and self.layer is None:
            raise RecipeError("TaskOverride.layer must be given with items of one's own.")
        if self.items and self.original == "examples" and not all(i.prompt for i in self.items):
            raise RecipeError("TaskOverride.original='examples' needs a prompt in each item.")
        if not self.items and not pairs_of(self.chosen_tasks()):
            raise RecipeError(
                "TaskOverride.tasks needs at least two tasks over the same inputs, such as "
                "('country-capital', 'country-currency')."
            )
        self.at_least(1, "rows", "max_new_tokens", "batch_size")
        self.at_least(0, "layer")

    def validate_for(self, vlm: HookedVLM) -> None:
        """Checks the layer, that the model sees pictures if it must, and that the judge answers."""
        self.a_block(vlm)
        pictured = any(not isinstance(item.given, str) for item in self.items)
        if pictured and not vlm.family.takes_images:
            raise RecipeError(f"{vlm.name} takes no pictures, and TaskOverride.items holds some.")
        if isinstance(judge := self.used_judge(), Endpoint):
            judge.check()

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON data; of items of one's own, their number and a digest."""
        made = super().to_dict()
        return {**made, "items": len(self.items), "items_digest": digest(made["items"])}


def pairs_of(tasks: Sequence[Task]) -> list[tuple[Task, Task]]:
    """Every ordered pair of tasks over the same test inputs."""
    inputs = {task: {row.input for row in task.test} for task in tasks}
    return [(a, b) for a, b in permutations(tasks, 2) if inputs[a] == inputs[b]]


def _third(mine: int, names: Sequence[str], item: OverrideItem) -> int | None:
    """The next instruction that is neither of the item's own."""
    around = [(mine + step) % len(names) for step in range(1, len(names))]
    return next((i for i in around if names[i] != item.original.question), None)


def _as_long(vectors: Tensor, other: Tensor) -> Tensor:
    return vectors * (other.norm(dim=-1, keepdim=True) / vectors.norm(dim=-1, keepdim=True))
