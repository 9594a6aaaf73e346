"""Cross-modal patching: a task read from prompts of one modality, written into another's query.

The main experiment of Luo et al. 2025 (arXiv 2410.22330): Tables 2, 10, 11 and 12.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from vlm_lens.interventions import ActivationPatch, Steer
from vlm_lens.layout.positions import Last
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.reading.vectors import TaskVector
from vlm_lens.recipes.base import RecipeError, seed_list
from vlm_lens.recipes.parts.baselines import constant_answers
from vlm_lens.recipes.parts.controls import (
    Control,
    Setting,
    chosen_controls,
    donors,
    interventions,
)
from vlm_lens.recipes.parts.predict import first_tokens, whole_answers
from vlm_lens.recipes.parts.scoring import Scores, score
from vlm_lens.recipes.parts.task_recipe import TaskRecipe
from vlm_lens.recipes.parts.transfer_result import (
    Run,
    TransferResult,
    Whole,
    best_layer,
    transfer_result,
)
from vlm_lens.recipes.parts.vector_sources import (
    Form,
    Query,
    Source,
    TaskVectors,
    few_shot,
    in_form,
    writable_into,
)
from vlm_lens.tasks import Task
from vlm_lens.terms import AS_DONOR, NO_CONTEXT, PATCH, PROMPT, WRONG_SAME

__all__ = ["CrossModalPatch", "TransferResult"]

Reader = Callable[[Task, int], TaskVector]
Said = dict[tuple[str, int], tuple[Tensor, Whole | None]]  # (method, seed) -> first tokens, wholes


@dataclass(frozen=True)
class CrossModalPatch(TaskRecipe):
    r"""Compares prompting with patching, on the test rows of each task.

    - *No Context*: the query alone, `Q:{query}\nA:`.
    - *Prompt*: examples drawn from the other test rows, afresh for each query and seed, then the
      query.
    - *Patch*: the query alone, and at its last position, at the output of one block, the task
      vector. The vector is read at the delimiter of each validation prompt's last example, and
      averaged over the prompts; see `sources.open_prompts`.
    - Controls at the same place, in the same sweep. With the norm of the task vector: the vector
      of another task of the same domain, that of a task of another domain, a random direction, and
      a vector from examples whose answers are shuffled. And the task's own vector used otherwise:
      read from a single prompt; added instead of put in place. See `controls`.
    - What a guess gets: the first token of the commonest label, and the one token that is right for
      most validation rows, said to every query. See `baselines`.

    One layer is chosen for all tasks on the validation rows. The predicted token is right if it and
    an answer begin one another; the strict rule wants the answer's first token. With
    `whole_answers` the answer's other tokens are judged too: whether greedy decoding says all of
    them, and how likely they are.

    Attributes:
        tasks: `"all"` for the paper's six, the name of a shipped task, a Task, or several.
        source: Where the task is read from: examples by name, picture or dense description (Table
            4), or the instruction. With descriptions, rows without one are left out.
        query: Whether queries are given by picture, name or description.
        seeds: A number n for seeds 1..n, or the seeds.
        layer: The 0-based block whose output is replaced; chosen on the validation rows if None.
        vectors: The mean over all validation prompts (the paper's tables), or the vector of a
            single prompt.
        n_examples: How many examples a prompt has.
        ignore_case: Whether answers are compared without case.
        controls: All or none; or which, by key, with one's own among them: see `CONTROLS`.
        form: How prompts are written: as questions and answers, or as turns of a conversation in
            the model's own chat template (Table 10).
        source_model: Reads the vectors on another model, for example the base language model.
        whole_answers: Whether answers of several tokens are scored as a whole too, teacher-forced,
            on the test rows; takes about twice as long there.
        batch_size: How many prompts run together.
    """

    source: Source = "text"
    query: Query = "image"
    seeds: int | tuple[int, ...] = 3
    layer: int | None = None
    vectors: Literal["mean", "single"] = "mean"
    n_examples: int = 5
    ignore_case: bool = False
    controls: bool | tuple[str | Control, ...] = True
    form: Form = "question-answer"
    source_model: str | None = None
    whole_answers: bool = False
    batch_size: int = 32

    def measure(self, vlm: HookedVLM) -> TransferResult:
        """Vectors, then the layer, then the test."""
        tasks = [in_form(task, self.form, vlm) for task in self.chosen_tasks()]
        vector = self.reader(self.source_vlm(vlm))
        for task in self.progress(tasks, "task vectors"):
            for seed in self.used_seeds():
                vector(task, seed)
        layer, layers = self.chosen_layer(vlm, tasks, vector)
        runs = [run for task in tasks for run in self.test(vlm, task, layer, vector)]
        return transfer_result(runs, layers, layer, self)

    # ------------------------------------------------------------------ the steps

    def source_vlm(self, vlm: HookedVLM) -> Any:
        """The model that vectors are read on.

        Raises:
            RecipeError: It takes no pictures, and they are to be read from pictures; or its
                vectors do not fit the model that is written into.
        """
        if self.source_model is None:
            return vlm
        source = writable_into(vlm, self.source_model, field="CrossModalPatch.source_model")
        if self.source == "image" and not source.family.takes_images:
            raise RecipeError(
                f"CrossModalPatch.source is 'image', and {source.name} takes no pictures."
            )
        return source

    def reader(self, vlm: HookedVLM) -> TaskVectors:
        """Reads task vectors on a model, each once."""
        return TaskVectors(
            vlm, self.source, kind=self.vectors, n_examples=self.n_examples, form=self.form,
            batch_size=self.batch_size,
        )  # fmt: skip

    def vector(self, vlm: HookedVLM, task: Task, seed: int) -> TaskVector:
        """The task's vector, every layer at once."""
        return self.reader(vlm)(task, seed)

    def patch(
        self, layer: int, value: TaskVector | Tensor, *, allow_transfer: bool | None = None
    ) -> ActivationPatch:
        """The vector in place of what the query's last position holds after one block.

        Args:
            layer: The block.
            value: The vector.
            allow_transfer: Whether it may be another model's; as `source_model` says if None.
        """
        return ActivationPatch(
            f"blocks.{layer}.hook_resid_post", at=Last(), value=value,
            allow_transfer=self._transfers(allow_transfer),
        )  # fmt: skip

    def add(
        self, layer: int, value: TaskVector | Tensor, *, allow_transfer: bool | None = None
    ) -> Steer:
        """The vector added to what the query's last position holds after one block; see `patch`."""
        return Steer(
            f"blocks.{layer}.hook_resid_post", at=Last(), vector=value,
            allow_transfer=self._transfers(allow_transfer),
        )  # fmt: skip

    def _transfers(self, allow: bool | None) -> bool:
        return self.source_model is not None if allow is None else allow

    def chosen_layer(
        self, vlm: HookedVLM, tasks: Sequence[Task], vector: Reader
    ) -> tuple[int, pd.DataFrame | None]:
        """The block that is patched, and the sweep on validation rows that chose it, if one did."""
        if self.layer is not None:
            return self.layer, None
        layers = pd.concat([self.sweep(vlm, task, vector) for task in tasks])
        return best_layer(layers), layers

    def sweep(self, vlm: HookedVLM, task: Task, vector: Reader) -> pd.DataFrame:
        """Accuracy on the validation rows, patched at each layer."""
        runs = [(s, layer) for s in self.used_seeds() for layer in range(vlm.cfg.n_layers)]
        patches = [self.patch(layer, vector(task, seed)) for seed, layer in runs]
        queries = [task.query(row, self.query) for row in task.validation]
        predicted = self._predict(vlm, queries, patches, f"{task.name}: layers")
        scores = self._score(vlm, predicted, [row.answers for row in task.validation])
        means = zip(scores.correct.mean(1), scores.strict.mean(1), strict=True)
        rows = [(task.name, *run, *mean) for run, mean in zip(runs, means, strict=True)]
        return pd.DataFrame(rows, columns=["task", "seed", "layer", "accuracy", "strict"])

    def test(self, vlm: HookedVLM, task: Task, layer: int, vector: Reader) -> list[Run]:
        """What the model says for each test row, by each method."""
        answers = [row.answers for row in task.test]
        queries = [task.query(row, self.query) for row in task.test]
        patches: dict[tuple[str, int], Any] = {(NO_CONTEXT, 0): ()}
        for seed in self.used_seeds():
            patches[PATCH, seed] = self.patch(layer, vector(task, seed))
            setting = self.setting(task, seed, layer, vector)
            for method, control in interventions(self.used_controls(), setting).items():
                patches[method, seed] = control
        said = self._said(vlm, queries, patches, answers, f"{task.name}: patch")
        for seed in self.used_seeds():
            prompt = {(PROMPT, seed): ()}
            what = f"{task.name}: prompt"
            said |= self._said(vlm, self.prompts(task, seed), prompt, answers, what)
        constant = constant_answers(vlm, task, ignore_case=self.ignore_case)
        said |= {(method, 0): (tokens, None) for method, tokens in constant.items()}
        runs = self._scored(vlm, task, said, answers)
        donor, _ = donors(task, self.chosen_tasks())
        wrong: Said = {(AS_DONOR, s): (said[m, s][0], None) for m, s in said if m == WRONG_SAME}
        if wrong:  # does the other task's vector make the model do that task?
            runs += self._scored(vlm, task, wrong, [donor[row.input].answers for row in task.test])
        return runs

    def setting(
        self,
        task: Task,
        seed: int,
        layer: int,
        vector: Reader,
        *,
        allow_transfer: bool | None = None,
    ) -> Setting:
        """What controls of the patch are made from; `allow_transfer` as of `patch`."""
        allow = {"allow_transfer": allow_transfer}
        return Setting(
            task, seed, layer, self.chosen_tasks(), vector,
            write=partial(self.patch, layer, **allow), add=partial(self.add, layer, **allow),
            single=None if self.vectors == "single" else getattr(vector, "single", None),
        )  # fmt: skip

    def used_controls(self) -> tuple[Control, ...]:
        """The controls that the field `controls` means."""
        drawn = self.source != "instruction"  # nothing is drawn or shuffled for an instruction
        return chosen_controls(
            self.controls, field="CrossModalPatch.controls",
            without=() if drawn else ("shuffled", "single"),
        )  # fmt: skip

    def prompts(self, task: Task, seed: int) -> Sequence[RawPrompt]:
        """The few-shot prompts of the test rows, the query of each in the target modality."""
        return few_shot(task, self.source, self.query, seed=seed, n=self.n_examples)

    def _predict(
        self, vlm: HookedVLM, prompts: Sequence[Any], runs: Sequence[Any], what: str
    ) -> Tensor:
        return first_tokens(
            vlm, prompts, runs, batch_size=self.batch_size,
            progress=lambda batches: self.progress(batches, what),
        )  # fmt: skip

    def _said(
        self,
        vlm: HookedVLM,
        prompts: Sequence[Any],
        methods: dict[tuple[str, int], Any],
        answers: Sequence[Sequence[str]],
        what: str,
    ) -> Said:
        """What each method makes the model say to the prompts."""
        runs = list(methods.values())
        tokens = self._predict(vlm, prompts, runs, what)
        wholes: list[Whole | None] = [None] * len(runs)
        if self.whole_answers:
            probs, greedy = whole_answers(
                vlm, prompts, answers, runs, batch_size=self.batch_size,
                progress=lambda batches: self.progress(batches, f"{what}, whole answers"),
            )  # fmt: skip
            wholes = [Whole(*one) for one in zip(probs.numpy(), greedy.numpy(), strict=True)]
        return dict(zip(methods, zip(tokens, wholes, strict=True), strict=True))

    def _score(self, vlm: HookedVLM, tokens: Tensor, answers: Sequence[Sequence[str]]) -> Scores:
        return score(vlm, tokens, answers, ignore_case=self.ignore_case)

    def _scored(
        self,
        vlm: HookedVLM,
        task: Task,
        said: Said,
        answers: Sequence,
    ) -> list[Run]:
        scores = self._score(vlm, torch.stack([tokens for tokens, _ in said.values()]), answers)
        return [
            Run(task, *key, answers, scores[i], whole)
            for i, (key, (_, whole)) in enumerate(said.items())
        ]

    # ------------------------------------------------------------------ fields

    def used_seeds(self) -> tuple[int, ...]:
        """The seeds; one for an instruction, from which nothing is drawn."""
        return seed_list(self.seeds)[: 1 if self.source == "instruction" else None]

    def validate(self) -> None:
        """Checks the fields."""
        super().validate()
        seeds = seed_list(self.seeds)
        if not seeds or min(seeds) < 1 or len(set(seeds)) < len(seeds):
            raise RecipeError(
                f"CrossModalPatch.seeds is {self.seeds!r}; give a number of seeds from 1 on, or "
                "different seeds from 1 on."
            )
        self.used_controls()
        if self.form == "chat" and self.source == "instruction":
            raise RecipeError(
                "CrossModalPatch.form is 'chat', and an instruction alone is no conversation: set "
                "form='question-answer', or read the task from examples."
            )
        self.at_least(1, "n_examples", "batch_size")
        self.at_least(0, "layer")

    def validate_for(self, vlm: HookedVLM) -> None:
        """Checks the layer, and that a model that is to see pictures can."""
        self.a_block(vlm)
        self.must_see(vlm, "source", "query")
        in_form(self.chosen_tasks()[0], self.form, vlm)
        fewest = self.fewest_rows("validation", "test")
        if self.source != "instruction" and self.n_examples >= fewest[0]:
            raise RecipeError(
                f"CrossModalPatch.n_examples is {self.n_examples}; {fewest[1]} has {fewest[0]} "
                f"{fewest[2]} rows, one of them the query, and allows {max(0, fewest[0] - 1)}."
            )
