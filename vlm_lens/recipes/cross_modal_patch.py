"""Cross-modal patching: a task read from prompts of one modality, written into another's query.

The main experiment of Luo et al. 2025 (arXiv 2410.22330): Tables 2, 11 and 12 and Figure 10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vlm_lens.interventions import ActivationPatch
from vlm_lens.positions import Find, Last
from vlm_lens.recipes import transfer as t
from vlm_lens.recipes.base import Recipe, RecipeError, seed_list
from vlm_lens.recipes.metric import Scores, score
from vlm_lens.recipes.predict import first_tokens
from vlm_lens.recipes.transfer import Run, TransferResult
from vlm_lens.tasks import PAPER_TASKS, Task
from vlm_lens.template import RawPrompt
from vlm_lens.vectors import TaskVector

__all__ = ["CrossModalPatch", "TransferResult"]

Reader = Callable[[Task, int], TaskVector]


@dataclass(frozen=True)
class CrossModalPatch(Recipe):
    r"""Compares prompting with patching, on the test rows of each task.

    - *No Context*: the query alone, `Q:{query}\nA:`.
    - *Prompt*: examples drawn from the other test rows, afresh for each query and seed, then the
      query.
    - *Patch*: the query alone, and at its last position, at the output of one block, the task
      vector. The vector is read at the last example's delimiter, `Find(":", -3)`, of the validation
      prompts, and averaged over them.
    - Controls, written at the same place with the same norm: the vector of another task of the same
      domain, that of a task of another domain, and a random direction.

    One layer is chosen for all tasks on the validation rows. The predicted token is right if it and
    an answer begin one another; the strict rule wants the answer's first token.

    Attributes:
        tasks: `"all"` for the paper's six, the name of a shipped task, a Task, or several.
        source: Where the task is read from: examples as text or as pictures, or the instruction.
        query: Whether queries are given by name or by picture.
        seeds: A number n for seeds 1..n, or the seeds.
        layer: The 0-based block whose output is replaced; chosen on the validation rows if None.
        vectors: The mean over all validation prompts (the paper's tables), or the vector of a
            single prompt.
        n_examples: How many examples a prompt has.
        ignore_case: Whether answers are compared without case.
        controls: Whether the controls are run.
        source_model: Reads the vectors on another model, for example the base language model.
        batch_size: How many prompts run together.
    """

    tasks: str | Task | tuple[str | Task, ...] = "all"
    source: Literal["text", "image", "instruction"] = "text"
    query: Literal["image", "text"] = "image"
    seeds: int | tuple[int, ...] = 3
    layer: int | None = None
    vectors: Literal["mean", "single"] = "mean"
    n_examples: int = 5
    ignore_case: bool = False
    controls: bool = True
    source_model: str | None = None
    batch_size: int = 32

    def measure(self, vlm: Any) -> TransferResult:
        """Vectors, then the layer, then the test."""
        tasks = self.chosen_tasks()
        source = self.source_vlm(vlm)
        vector = cache(partial(self.vector, source))  # each is read once
        for task in self.progress(tasks, "task vectors"):
            for seed in self.used_seeds():
                vector(task, seed)
        layers, layer = None, self.layer
        if layer is None:
            layers = pd.concat([self.sweep(vlm, task, vector) for task in tasks])
            layer = t.best_layer(layers)
        runs = [run for task in tasks for run in self.test(vlm, task, layer, vector)]
        return t.result(runs, layers, layer, self)

    # ------------------------------------------------------------------ the steps

    def source_vlm(self, vlm: Any) -> Any:
        """The model that vectors are read on.

        Raises:
            RecipeError: It takes no pictures, and they are to be read from pictures.
        """
        if self.source_model is None:
            return vlm
        from vlm_lens.model import HookedVLM

        source = HookedVLM.from_pretrained(self.source_model)
        if self.source == "image" and source.cfg.vision is None:
            raise RecipeError(
                f"CrossModalPatch.source is 'image', and {source.name} takes no pictures."
            )
        return source

    def vector(self, vlm: Any, task: Task, seed: int) -> TaskVector:
        """The task's vector, every layer at once."""
        if self.source == "instruction":
            return TaskVector.read(vlm, [task.instruction], at=Find(":", -1))
        # The delimiter stands before the open query, so the query's modality cannot matter to it.
        prompts = task.example_sets(self.source, seed=seed, n=self.n_examples)
        if self.vectors == "single":
            prompts = [prompts[np.random.RandomState(seed).permutation(len(prompts))[0]]]
        return TaskVector.read(
            vlm, prompts, at=Find(":", -3), seed=seed, batch_size=self.batch_size
        )

    def patch(self, layer: int, value: TaskVector | Tensor) -> ActivationPatch:
        """The vector in place of what the query's last position holds after one block."""
        return ActivationPatch(
            f"blocks.{layer}.hook_resid_post", at=Last(), value=value,
            allow_transfer=self.source_model is not None,
        )  # fmt: skip

    def sweep(self, vlm: Any, task: Task, vector: Reader) -> pd.DataFrame:
        """Accuracy on the validation rows, patched at each layer."""
        runs = [(s, layer) for s in self.used_seeds() for layer in range(vlm.cfg.n_layers)]
        patches = [self.patch(layer, vector(task, seed)) for seed, layer in runs]
        queries = [task.query(row, self.query) for row in task.validation]
        said = self._predict(vlm, queries, patches, f"{task.name}: layers")
        scores = self._score(vlm, said, [row.answers for row in task.validation])
        means = zip(scores.correct.mean(1), scores.strict.mean(1), strict=True)
        rows = [(task.name, *run, *mean) for run, mean in zip(runs, means, strict=True)]
        return pd.DataFrame(rows, columns=["task", "seed", "layer", "accuracy", "strict"])

    def test(self, vlm: Any, task: Task, layer: int, vector: Reader) -> list[Run]:
        """What the model says for each test row, by each method."""
        answers = [row.answers for row in task.test]
        queries = [task.query(row, self.query) for row in task.test]
        patches: dict[tuple[str, int], Any] = {(t.NO_CONTEXT, 0): ()}
        for seed in self.used_seeds():
            patches[t.PATCH, seed] = self.patch(layer, vector(task, seed))
            for method, value in self._controls(task, seed, layer, vector).items():
                patches[method, seed] = self.patch(layer, value)
        tokens = self._predict(vlm, queries, list(patches.values()), f"{task.name}: patch")
        said = dict(zip(patches, tokens, strict=True))
        for seed in self.used_seeds():
            prompts = self.prompts(task, seed)
            said[t.PROMPT, seed] = self._predict(vlm, prompts, [()], f"{task.name}: prompt")[0]
        runs = self._scored(vlm, task, said, answers)
        donor, _ = t.donors(task, self.chosen_tasks())
        wrong = {(t.AS_DONOR, s): said[m, s] for m, s in said if m == t.WRONG_SAME}
        if wrong:  # does the other task's vector make the model do that task?
            runs += self._scored(vlm, task, wrong, [donor[row.input].answers for row in task.test])
        return runs

    def _controls(self, task: Task, seed: int, layer: int, vector: Reader) -> dict[str, Tensor]:
        """Vectors that should not work, as long as the one that should."""
        if not self.controls:
            return {}
        mine = vector(task, seed).layer(layer)
        generator = torch.Generator().manual_seed(seed)
        wrong = {t.RANDOM: torch.randn(mine.shape, generator=generator)}
        donors = t.donors(task, self.chosen_tasks())
        for method, donor in zip((t.WRONG_SAME, t.WRONG_OTHER), donors, strict=True):
            if donor is not None:
                wrong[method] = vector(donor, seed).layer(layer)
        return {m: (v * (mine.norm() / v.norm())).to(mine.dtype) for m, v in wrong.items()}

    def prompts(self, task: Task, seed: int) -> Sequence[RawPrompt]:
        """The few-shot prompts of the test rows, the query of each in the target modality."""
        if self.source != "instruction":
            return task.example_sets(
                self.source, seed=seed, target_modality=self.query, n=self.n_examples, split="test"
            )
        queries = [task.query(row, self.query) for row in task.test]
        return [RawPrompt(f"{task.instruction}\n\n{q.text}", q.images) for q in queries]

    def _predict(self, vlm: Any, prompts: Sequence[Any], runs: Sequence[Any], what: str) -> Tensor:
        return first_tokens(
            vlm, prompts, runs, batch_size=self.batch_size,
            progress=lambda batches: self.progress(batches, what),
        )  # fmt: skip

    def _score(self, vlm: Any, tokens: Tensor, answers: Sequence[Sequence[str]]) -> Scores:
        return score(vlm, tokens, answers, ignore_case=self.ignore_case)

    def _scored(
        self, vlm: Any, task: Task, said: dict[tuple[str, int], Tensor], answers: Sequence
    ) -> list[Run]:
        scores = self._score(vlm, torch.stack(list(said.values())), answers)
        return [Run(task, *key, answers, scores[i]) for i, key in enumerate(said)]

    # ------------------------------------------------------------------ fields

    def chosen_tasks(self) -> tuple[Task, ...]:
        """The tasks that the field `tasks` means."""
        names = PAPER_TASKS if self.tasks == "all" else self.tasks
        names = names if isinstance(names, tuple) else (names,)
        return tuple(Task.load(name) if isinstance(name, str) else name for name in names)

    def used_seeds(self) -> tuple[int, ...]:
        """The seeds; one for an instruction, from which nothing is drawn."""
        return seed_list(self.seeds)[: 1 if self.source == "instruction" else None]

    def validate(self) -> None:
        """Checks the fields."""
        tasks = self.chosen_tasks()
        if len({task.name for task in tasks}) < len(tasks) or not tasks:
            raise RecipeError(f"CrossModalPatch.tasks must name different tasks: {self.tasks!r}.")
        seeds = seed_list(self.seeds)
        if not seeds or min(seeds) < 1 or len(set(seeds)) < len(seeds):
            raise RecipeError(
                f"CrossModalPatch.seeds is {self.seeds!r}; give a number of seeds from 1 on, or "
                "different seeds from 1 on."
            )
        for name, least in (("n_examples", 1), ("batch_size", 1), ("layer", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RecipeError(f"CrossModalPatch.{name} is {value}; the least is {least}.")

    def validate_for(self, vlm: Any) -> None:
        """Checks the layer, and that a model that is to see pictures can."""
        if self.layer is not None and self.layer >= vlm.cfg.n_layers:
            raise RecipeError(
                f"CrossModalPatch.layer is {self.layer}; {vlm.name} has blocks "
                f"0..{vlm.cfg.n_layers - 1}."
            )
        if "image" in (self.source, self.query) and vlm.cfg.vision is None:
            raise RecipeError(
                f"{vlm.name} takes no pictures: set CrossModalPatch.source and .query to 'text'."
            )
