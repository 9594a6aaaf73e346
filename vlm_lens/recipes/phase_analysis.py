"""Phases: what the last delimiter of a few-shot prompt says at each layer.

Luo et al. 2025 (arXiv 2410.22330), section 4.1 and Figures 8, 14 and 15: through the layers the
residual stream decodes first to a token of its input, then to a word for the task, then to the
answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from vlm_lens.layout.positions import Last
from vlm_lens.lenses import LogitLens
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.recipes.base import Recipe, RecipeError
from vlm_lens.recipes.parts.phase_result import PhaseResult, phases
from vlm_lens.recipes.parts.scoring import answer_token
from vlm_lens.recipes.parts.word_forms import answer_forms, word_forms
from vlm_lens.tasks import Task
from vlm_lens.terms import PHASES

__all__ = ["PhaseAnalysis", "PhaseResult", "delimiter_decoding"]


@dataclass(frozen=True)
class PhaseAnalysis(Recipe):
    """Follows three tokens through the layers with the logit lens.

    Each run is a prompt of examples and an open query, read at its last position, the delimiter
    before the answer. At the embedding and after each block the residual stream is decoded, and
    the probabilities of three things are renormalised to sum to one: a token of the input, a word
    for the task, and the first token of the run's own answer. Beside them stand the ranks of the
    three in the whole vocabulary.

    The word for the task is looked for in all its forms that are one token (with a space in front,
    with a capital letter, in the plural), the answer's first token with and without a space in
    front; probabilities are summed over forms, and the best rank counts. Which tokens were taken is
    said. With `forms=False` each is one token, as in the paper (a softmax over their three logits).

    The token of the input is found on any model: it is what the delimiter's own embedding decodes
    to, the most likely token before the first block, where nothing of the prompt has been mixed in
    yet. On Idefics2 that is the paper's `auf`; with tied embeddings it is the delimiter itself.

    An instruction is one prompt with no answer of its own: each run pairs it with the answer of
    another row, so that its answer curve is the mean over the task's labels.

    Attributes:
        task: The name of a shipped task, or a Task.
        modality: Whether examples and query are given by name or by picture; or the instruction
            alone.
        runs: How many prompts; each has another query, so no more than the split has rows.
        n_examples: How many examples a prompt has.
        seed: The seed of the draw.
        split: Whose rows are drawn.
        input_token: The token for the input; by default the one that the delimiter's own
            embedding decodes to.
        task_token: The word for the task, or several; by default the task's own.
        forms: Whether words are looked for in all their forms.
        batch_size: How many prompts run together.
    """

    task: str | Task
    modality: Literal["text", "image", "instruction"] = "text"
    runs: int = 100
    n_examples: int = 5
    seed: int = 1
    split: Literal["validation", "test"] = "test"
    input_token: str | None = None
    task_token: str | tuple[str, ...] | None = None
    forms: bool = True
    batch_size: int = 16

    def measure(self, vlm: HookedVLM) -> PhaseResult:
        """Probabilities and ranks of the three tokens, by run and layer."""
        task = self.chosen_task()
        prompts = self.prompts(task)
        answers = [row.output for row in task.rows(self.split)][: self.runs]
        input_id = (
            vlm.to_single_token(self.input_token)
            if self.input_token is not None
            else delimiter_decoding(vlm, prompts[0])
        )
        words = self.task_token or task.task_word or ""
        words = (words,) if isinstance(words, str) else words
        if self.forms:
            task_ids = word_forms(vlm, words)
            ids = [(answer_forms(vlm, answer), tuple(task_ids)) for answer in answers]
        else:
            task_ids = {vlm.to_first_token(word): word for word in words}
            ids = [((answer_token(vlm, answer),), tuple(task_ids)) for answer in answers]
        ids = [_apart(input_id, for_task, for_answer) for for_answer, for_task in ids]
        distinct = [i for i, three in enumerate(ids) if all(three)]
        if not distinct:
            raise RecipeError(
                f"The tokens for input, task and answer must differ; for {task.name} they do in no "
                "run. Set PhaseAnalysis.input_token or .task_token."
            )
        starts = range(0, len(distinct), self.batch_size)
        tables = []
        for start in self.progress(starts, f"{task.name}, {self.modality}: logit lens"):
            batch = distinct[start : start + self.batch_size]
            tables.append(decode(vlm, [prompts[i] for i in batch], [ids[i] for i in batch], batch))
        runs = pd.concat(tables, ignore_index=True)
        token = vlm.tokenizer.decode
        values = {
            "task": task.name,
            "modality": self.modality,
            "input_token": token([input_id]),
            "task_token": token([next(iter(task_ids))]),
            "task_tokens": [token([i]) for i in task_ids],
        }
        return phases(runs, values, skipped=len(ids) - len(distinct))

    def prompts(self, task: Task) -> tuple[RawPrompt, ...]:
        """What is decoded, one prompt a run."""
        if self.modality == "instruction":
            return (RawPrompt(task.instruction),) * min(self.runs, len(task.rows(self.split)))
        return task.example_sets(
            self.modality, seed=self.seed, n=self.n_examples, split=self.split
        )[: self.runs]

    def chosen_task(self) -> Task:
        """The task that the field `task` means."""
        return Task.load(self.task) if isinstance(self.task, str) else self.task

    def validate(self) -> None:
        """Checks the fields."""
        task = self.chosen_task()
        self.at_least(1, "runs", "n_examples", "batch_size")
        if not (self.task_token or task.task_word):
            raise RecipeError(
                f"The task {task.name!r} has no word for itself: set PhaseAnalysis.task_token."
            )

    def validate_for(self, vlm: HookedVLM) -> None:
        """Checks that a model that is to see pictures can."""
        self.must_see(vlm, "modality")


def delimiter_decoding(vlm: HookedVLM, prompt: RawPrompt) -> int:
    """The token that the delimiter decodes to before the first block; the same in every prompt."""
    seen = LogitLens(at=Last(), k=1, embedding=True).run(vlm, prompt)
    return int(seen.rows[0].top_ids[0, 0, 0])


Three = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _apart(input_id: int, for_task: Sequence[int], for_answer: Sequence[int]) -> Three:
    """The tokens of input, task and answer, none of them twice; the answer's go first."""
    taken = {input_id, *for_answer}
    task = tuple(i for i in for_task if i not in taken)
    return (input_id,), task, tuple(i for i in for_answer if i != input_id)


def decode(
    vlm: HookedVLM,
    prompts: Sequence[RawPrompt],
    ids: Sequence[Three],
    runs: Sequence[int],
) -> pd.DataFrame:
    """Probability (renormalised over three) and rank (over all) of each run's three things."""
    chosen = sorted({i for three in ids for forms in three for i in forms})
    lens = LogitLens(at=Last(), k=1, tokens=tuple(chosen), embedding=True)
    seen = lens.run(vlm, vlm.prompt(list(prompts)))
    tables = []
    for run, three, row in zip(runs, ids, seen.rows, strict=True):
        columns = [[chosen.index(i) for i in forms] for forms in three]
        each = row.token_probs[:, 0].double().numpy()
        probs = np.stack([each[:, forms].sum(1) for forms in columns], 1)
        probs = np.maximum(probs, np.finfo(np.float64).tiny)
        each = row.token_ranks[:, 0].numpy()
        ranks = np.stack([each[:, forms].min(1) for forms in columns], 1)
        table = pd.DataFrame({"run": run, "layer": seen.layers})
        for k, phase in enumerate(PHASES):
            table[phase] = probs[:, k] / probs.sum(1)
            table[f"{phase}_rank"] = ranks[:, k]
        table["top_token"] = [seen.labels[int(i)] for i in row.top_ids[:, 0, 0]]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
