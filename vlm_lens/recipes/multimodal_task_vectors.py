"""Multimodal task vectors: which heads' means, put in place, make a query do the task?

Huang et al. 2024 (NeurIPS; arXiv 2406.15334) and its code, here also across modalities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.gradients import recording
from vlm_lens.interventions.base import compose
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.reading.vectors import TaskVector
from vlm_lens.recipes.base import RecipeError
from vlm_lens.recipes.parts.heads import Head, mean_head_outputs, patch_heads, random_heads
from vlm_lens.recipes.parts.method_recipe import MethodRecipe, MethodResult, with_methods
from vlm_lens.recipes.parts.scoring import answer_token
from vlm_lens.tasks import Task

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["MultimodalTaskVectors", "MultimodalTaskVectorsResult", "Search", "search"]

MTV = "Multimodal task vector"
RANDOM = "Random heads, each in place"
_START, _LEAST = -1.0, 1e-3  # first logit of every head; least probability to be drawn, and not


@dataclass(frozen=True)
class MultimodalTaskVectors(MethodRecipe):
    """Puts the means of some heads in place at a query's last position; which, is learned.

    1. Each head's mean output at the last position of the few-shot prompts of the validation rows.
    2. A search by REINFORCE, task by task: every head has a probability to be put in place. A step
       takes one validation row's bare query, draws `samples` sets of heads, and follows the loss
       (cross-entropy of the answer's first token) by Adam on the probabilities' logits.
    3. The heads more likely than not are put in place in the test queries.

    *Random heads, each in place*, as many in each block and none of the found ones as far as a
    block has others, is the control: what does the search add?

    Unlike the paper: 100 steps of search, not 600 (set `steps`); one search a task, with the means
    of the first seed; at the end the set of heads is not drawn but the likeliest one; the means
    come from the validation rows' prompts, and queries may be of another modality than these.

    Attributes:
        steps: Steps of the search; the paper makes 600.
        samples: Sets of heads a step.
        learning_rate: Adam's.
    """

    steps: int = field(default=100, kw_only=True)
    samples: int = field(default=32, kw_only=True)
    learning_rate: float = field(default=0.1, kw_only=True)

    def measure(self, vlm: HookedVLM) -> MultimodalTaskVectorsResult:
        """Means, the search, the test."""
        reference = self.paper().measure(vlm)
        runs, heads, steps = [], [], []
        for task in self.chosen_tasks():
            means = {seed: self.means(vlm, task, seed) for seed in self.used_seeds()}
            found = self.located(vlm, task, means[self.used_seeds()[0]])
            methods: dict[tuple[str, int], Any] = {}
            for seed, mine in means.items():
                methods[MTV, seed] = patch_heads(mine, found.heads)
                others = random_heads(vlm, found.heads, seed=seed, by_block=True)
                if self.controls and others:
                    methods[RANDOM, seed] = patch_heads(mine, others)
            runs += self.runs(vlm, task, methods, what="task vectors of heads")
            heads.append(found.table().assign(task=task.name))
            steps.append(found.history.assign(task=task.name))
        tables = {"heads": pd.concat(heads, ignore_index=True),
                  "search": pd.concat(steps, ignore_index=True)}  # fmt: skip
        each = tables["heads"].groupby("task", sort=False)["chosen"].sum()
        note = (
            f"{MTV}: heads put in place, of {vlm.cfg.n_layers * vlm.cfg.n_heads}, by task: "
            f"{', '.join(f'{name} {n}' for name, n in each.items())}; found in {self.steps} steps."
        )
        return with_methods(
            reference, runs, self, kind=MultimodalTaskVectorsResult, tables=tables, notes=[note]
        )

    def means(self, vlm: HookedVLM, task: Task, seed: int) -> TaskVector:
        """Every head's mean output, `[layers, heads, d_head]`."""
        prompts = task.example_sets(self.source, seed=seed, n=self.n_examples)
        return mean_head_outputs(vlm, prompts, batch_size=self.batch_size)

    def located(self, vlm: HookedVLM, task: Task, means: TaskVector) -> Search:
        """The search on the validation rows of one task."""
        rows, generator = task.validation, np.random.RandomState(self.used_seeds()[0])
        prompts = [vlm.as_prompt(task.query(row, self.query)) for row in rows]

        def losses(sets: list[list[Head]]) -> Tensor:
            one = generator.randint(len(rows))
            return loss(vlm, prompts[one], rows[one].output, means, sets)

        return search(
            losses, (vlm.cfg.n_layers, vlm.cfg.n_heads), steps=self.steps, samples=self.samples,
            learning_rate=self.learning_rate, seed=self.used_seeds()[0],
            progress=lambda steps: self.progress(steps, f"{task.name}: search"),
        )  # fmt: skip

    def validate(self) -> None:
        """Checks the fields."""
        super().validate()
        self.at_least(1, "steps")
        self.at_least(2, "samples")
        if self.learning_rate <= 0:
            raise RecipeError(
                f"MultimodalTaskVectors.learning_rate is {self.learning_rate}; it must be positive."
            )


def loss(
    vlm: HookedVLM, prompt: Any, answer: str, means: TaskVector, sets: list[list[Head]]
) -> Float[Tensor, " sets"]:
    """Cross-entropy of the answer's first token, with each set of heads put in place.

    Args:
        vlm: A HookedVLM.
        prompt: A query.
        answer: The right answer.
        means: What `mean_head_outputs` gave.
        sets: Sets of heads; an empty one leaves the query as it is.
    """
    token = answer_token(vlm, answer)

    def entropy(logits: Tensor) -> float:
        return -float(logits.float().log_softmax(-1)[token])

    edits = [compose(patch_heads(means, heads)) for heads in sets]
    swept = vlm.sweep(prompt, edits, measure=entropy, progress=False)
    return swept.stack("value").float()


@dataclass(frozen=True, eq=False)
class Search:
    """What a search has found.

    Attributes:
        probabilities: How likely each head is to be put in place.
        history: By step: the mean loss over the sets drawn, and their mean size.
    """

    probabilities: Float[Tensor, "layers heads"]
    history: pd.DataFrame

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads more likely than not; the likeliest one if there are none."""
        chosen = self.probabilities > 0.5
        if not chosen.any():
            chosen = self.probabilities == self.probabilities.max()
        return tuple((int(layer), int(head)) for layer, head in chosen.nonzero())

    def table(self) -> pd.DataFrame:
        """A row for each head: `layer`, `head`, `probability`, `chosen`."""
        chosen = set(self.heads)
        rows = [
            (layer, head, float(p), (layer, head) in chosen)
            for layer, row in enumerate(self.probabilities)
            for head, p in enumerate(row)
        ]
        return pd.DataFrame(rows, columns=["layer", "head", "probability", "chosen"])


def search(
    losses: Callable[[list[list[Head]]], Tensor],
    shape: tuple[int, int],
    *,
    steps: int,
    samples: int = 32,
    learning_rate: float = 0.1,
    seed: int = 0,
    progress: Callable[[range], Any] = iter,
) -> Search:
    """Learns which heads to take, by REINFORCE on independent Bernoulli variables.

    Args:
        losses: Gives the loss of each set of heads; called once a step.
        shape: Blocks and heads.
        steps: How many steps.
        samples: Sets drawn a step; their losses are standardised.
        learning_rate: Adam's.
        seed: The seed of the draws.
        progress: What the steps are passed through.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.full(shape, _START, requires_grad=True)
    adam, rows = torch.optim.Adam([logits], lr=learning_rate), []
    for step in progress(range(steps)):
        with recording():
            probabilities = logits.sigmoid().clamp(_LEAST, 1 - _LEAST)
        drawn = torch.rand(samples, *shape, generator=generator) < probabilities.detach()
        sets = [[(int(a), int(b)) for a, b in one.nonzero()] for one in drawn]
        found = losses(sets)
        standard = (found - found.mean()) / (found.std() + _LEAST)
        adam.zero_grad()
        with recording():
            chances = torch.where(drawn, probabilities, 1 - probabilities).log().sum((1, 2))
            (chances * standard).sum().backward()
        adam.step()
        rows.append((step, float(found.mean()), float(drawn.sum((1, 2)).float().mean())))
    history = pd.DataFrame(rows, columns=["step", "loss", "heads"])
    return Search(logits.detach().sigmoid(), history)


class MultimodalTaskVectorsResult(MethodResult):
    """Accuracies of heads put in place beside those of task vectors.

    `tables["heads"]` has the probability of every head, by task, and whether it is taken;
    `tables["search"]` the loss by step.
    """

    def plots(self) -> dict[str, go.Figure]:
        """The methods, the probability of every head, and the search."""
        from vlm_lens.figures.heads import head_map, search_curves

        table = self.tables["heads"]
        mean = table.groupby(["layer", "head"], as_index=False)[["probability", "chosen"]].mean()
        heads = head_map(
            mean, "probability", mean[mean["chosen"] > 0.5],
            title="Which heads are put in place?",
            subtitle="Mean over tasks; marked: taken in more than half of them",
        )  # fmt: skip
        search = search_curves(self.tables["search"])
        return {**super().plots(), "heads": heads, "search": search}
