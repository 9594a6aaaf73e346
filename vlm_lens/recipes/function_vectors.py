"""Function vectors: the heads that carry a task, found by their causal effect.

Todd et al. 2024 (ICLR; arXiv 2310.15213), sections 2 and 3, here also across modalities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.layout.positions import Last
from vlm_lens.measures import TokenScores
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.reading.vectors import TaskVector
from vlm_lens.recipes.base import RecipeError
from vlm_lens.recipes.parts.heads import (
    Head,
    function_vector,
    mean_head_outputs,
    patch_heads,
    random_heads,
)
from vlm_lens.recipes.parts.method_recipe import MethodRecipe, MethodResult, with_methods
from vlm_lens.recipes.parts.scoring import answer_token
from vlm_lens.recipes.parts.transfer_result import best_layer
from vlm_lens.sweep import Grid
from vlm_lens.tasks import Row, Task, draw_examples

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vlm_lens.scores import Scores

__all__ = ["FunctionVectors", "FunctionVectorsResult"]

ADDED = "Function vector, added"
REPLACED = "Function vector, replaced"
HEADS = "Its heads, each in place"
RANDOM = "Random heads, added"
RANDOM_REPLACED = "Random heads, replaced"
RANDOM_HEADS = "Random heads, each in place"


@dataclass(frozen=True)
class FunctionVectors(MethodRecipe):
    """Sums what the causally strongest attention heads say of a task, and adds it to a query.

    1. Each head's mean output at the last position of the few-shot prompts of the validation rows.
    2. *Average indirect effect* of each head: in few-shot prompts whose answers are spoiled, the
       head's output at the last position is replaced by its mean, and the probability of the right
       answer's first token rises by so much; mean over prompts, seeds and tasks.
    3. The function vector of a task is the sum of what the `heads` strongest heads' means write to
       the residual stream.

    *Function vector, added* adds it after one block at the query's last position, as in the paper;
    *replaced* puts it in place of what is there; *Its heads, each in place* replaces the same
    heads' outputs by their means in their own blocks. Each has a control of the same form, with as
    many heads that were not chosen; what these write is brought to the function vector's length.

    Unlike the paper: queries are of the recipe's modality, not that of the examples; blocks are
    chosen on the validation rows (there, a third of the depth); prompts that the model gets wrong
    are kept.

    Attributes:
        heads: How many heads; the paper takes 10 of GPT-J's 448, and more in larger models.
        trials: How many corrupted prompts a task and seed; no more than there are validation rows.
        corruption: How the examples' answers are spoiled: `"shuffled"` among the examples, as in
            the paper; or `"mixed"`, each the answer of another task over the same inputs, drawn at
            random. A model that takes the task from the kind of answers it sees (Min et al. 2022)
            does not mind the first, and then no head has an effect.
    """

    heads: int = field(default=10, kw_only=True)
    trials: int = field(default=25, kw_only=True)
    corruption: Literal["shuffled", "mixed"] = field(default="shuffled", kw_only=True)

    def measure(self, vlm: HookedVLM) -> FunctionVectorsResult:
        """Means, effects, the vectors, a block for each way, the test."""
        reference = self.paper().measure(vlm)
        pairs = list(product(self.chosen_tasks(), self.used_seeds()))
        means = {
            (task, seed): mean_head_outputs(
                vlm, task.example_sets(self.source, seed=seed, n=self.n_examples),
                batch_size=self.batch_size,
            )
            for task, seed in self.progress(pairs, "mean head outputs")
        }  # fmt: skip
        table = self.effects(vlm, means)
        chosen = tuple(
            (int(row.layer), int(row.head)) for row in table.head(self.heads).itertuples()
        )
        layers = self.layers(vlm, means, chosen)
        best = {way: best_layer(rows) for way, rows in layers.groupby("method", sort=False)}
        runs = []
        for task in self.chosen_tasks():
            methods = {
                (method, seed): edit
                for seed in self.used_seeds()
                for method, edit in self.methods(vlm, means[task, seed], chosen, best, seed).items()
            }
            runs += self.runs(vlm, task, methods, what="function vectors")
        note = (
            f"Function vector: {self.heads} heads of {len(table)} (answers {self.corruption}); "
            f"added after block {best[ADDED]}, put in place after block {best[REPLACED]} "
            "(0-based), chosen on the validation rows."
        )
        return with_methods(
            reference, runs, self, kind=FunctionVectorsResult, notes=[note],
            tables={"heads": table, "vector_layers": layers},
            values={"function_vector_layers": best, "n_heads": self.heads},
        )  # fmt: skip

    # ------------------------------------------------------------------ the steps

    def effects(self, vlm: HookedVLM, means: Mapping[tuple[Task, int], TaskVector]) -> pd.DataFrame:
        """The average indirect effect of every head, the strongest first.

        Args:
            vlm: A HookedVLM.
            means: What `mean_head_outputs` gave, by task and seed.
        """
        every: dict[tuple[str, str], list[Tensor]] = {}
        for task, seed in self.progress(list(means), "indirect effects"):
            for prompt, row in self.corrupted(task, seed):
                found = effect(vlm, prompt, row.output, means[task, seed])
                every.setdefault((task.name, row.input), []).append(found)
        stacked = torch.stack([torch.stack(seeds).mean(0) for seeds in every.values()])
        layers, heads = stacked.shape[1:]
        table = pd.DataFrame(
            {
                "layer": np.repeat(range(layers), heads),
                "head": np.tile(range(heads), layers),
                "effect": stacked.mean(0).flatten().numpy(),
                "error": (stacked.std(0) / len(stacked) ** 0.5).flatten().numpy(),
            }
        )
        return table.sort_values("effect", ascending=False, kind="stable", ignore_index=True)

    def corrupted(self, task: Task, seed: int) -> list[tuple[RawPrompt, Row]]:
        """Few-shot prompts in which the examples' answers are spoiled, and their query's row."""
        rows, generator, made = task.validation, np.random.RandomState(seed), []
        others = self.others(task)
        for asked, drawn in enumerate(draw_examples(len(rows), self.n_examples, seed=seed)):
            if self.corruption == "shuffled":
                answers = [rows[i].output for i in generator.permutation(drawn)]
            else:
                wrong = generator.randint(len(others), size=len(drawn))
                pairs = zip(wrong, drawn, strict=True)
                answers = [others[k][rows[i].input].output for k, i in pairs]
            shown = [(rows[i].given(self.source), a) for i, a in zip(drawn, answers, strict=True)]
            query = rows[asked]
            made.append((task.template.build(shown, query.given(self.source)), query))
        return made[: self.trials]

    def others(self, task: Task) -> list[Task]:
        """Other tasks over the same validation inputs: the recipe's, and shipped ones."""
        tasks = {one.name: one for one in map(Task.load, Task.names())}
        tasks |= {one.name: one for one in self.chosen_tasks()}
        asked = {row.input for row in task.validation}
        return [
            one for name, one in tasks.items()
            if name != task.name and asked <= {row.input for row in one}
        ]  # fmt: skip

    def layers(
        self, vlm: HookedVLM, means: Mapping[tuple[Task, int], TaskVector], chosen: tuple[Head, ...]
    ) -> pd.DataFrame:
        """Accuracy on the validation rows with the vector at each block, added and replaced."""
        rows = []
        for task in self.chosen_tasks():
            keys, methods = [], {}
            for seed in self.used_seeds():
                vector = function_vector(vlm, means[task, seed], chosen)
                for layer, (way, use) in product(range(vlm.cfg.n_layers), self.ways().items()):
                    keys.append((way, layer))
                    methods[f"{way} {layer}", seed] = use(layer, vector)
            runs = self.runs(vlm, task, methods, split="validation", what="blocks")
            for (way, layer), run in zip(keys, runs, strict=True):
                scores = run.scores.correct.mean(), run.scores.strict.mean()
                rows.append((way, task.name, run.seed, layer, *scores))
        columns = ["method", "task", "seed", "layer", "accuracy", "strict"]
        return pd.DataFrame(rows, columns=columns)

    def ways(self) -> dict[str, Callable[[int, Tensor], Any]]:
        """The ways to use a vector at a block."""
        paper = self.paper()
        return {ADDED: paper.add, REPLACED: paper.patch}

    def methods(
        self,
        vlm: HookedVLM,
        means: TaskVector,
        chosen: tuple[Head, ...],
        best: Mapping[str, int],
        seed: int,
    ) -> dict[str, Any]:
        """What is done to a query, by method."""
        vector = function_vector(vlm, means, chosen)
        made: dict[str, Any] = {way: use(best[way], vector) for way, use in self.ways().items()}
        made[HEADS] = patch_heads(means, chosen)
        others = random_heads(vlm, chosen, seed=seed)
        if self.controls and others:
            noise = function_vector(vlm, means, others)
            noise = (noise * (vector.norm() / noise.norm())).to(vector.dtype)
            made[RANDOM] = self.paper().add(best[ADDED], noise)
            made[RANDOM_REPLACED] = self.paper().patch(best[REPLACED], noise)
            made[RANDOM_HEADS] = patch_heads(
                means, random_heads(vlm, chosen, seed=seed, by_block=True)
            )
        return made

    def validate(self) -> None:
        """Checks the fields."""
        super().validate()
        self.at_least(1, "heads", "trials")
        alone = [task.name for task in self.chosen_tasks() if not self.others(task)]
        if self.corruption == "mixed" and alone:
            raise RecipeError(
                "FunctionVectors.corruption is 'mixed', and there is no other task over the inputs "
                f"of {alone[0]}: use 'shuffled'."
            )

    def validate_for(self, vlm: HookedVLM) -> None:
        """Checks the heads."""
        total = vlm.cfg.n_layers * vlm.cfg.n_heads
        if self.heads > total:
            raise RecipeError(
                f"FunctionVectors.heads is {self.heads}; {vlm.name} has {total} heads."
            )


def effect(
    vlm: HookedVLM, prompt: RawPrompt, answer: str, means: TaskVector
) -> Float[Tensor, "layers heads"]:
    """By how much each head's mean, put in place, raises the probability of the answer.

    Args:
        vlm: A HookedVLM.
        prompt: A few-shot prompt with spoiled answers.
        answer: The right answer.
        means: What `mean_head_outputs` gave.
    """
    layers, heads, _ = means.values.shape
    token = answer_token(vlm, answer)
    grid = Grid("blocks.*.attn.hook_z", at=Last(), vectors=means, heads=range(heads))
    prompt = vlm.as_prompt(prompt)
    swept = vlm.sweep(prompt, grid, measure=TokenScores((token,)), progress=False)
    plain = float(vlm.run(prompt)[0, -1].float().softmax(-1)[token])
    return swept.stack(f"prob({token})").reshape(layers, heads) - plain


class FunctionVectorsResult(MethodResult):
    """Accuracies of function vectors beside those of task vectors.

    `tables["heads"]` has the average indirect effect of every head, the strongest first, with its
    standard error over queries, each the mean over seeds; `tables["vector_layers"]` the validation
    accuracy by block.
    """

    def scores(self) -> Scores:
        """The average indirect effect of every head, by `layer` and `head`."""
        from vlm_lens.scores.scores import scores

        effects = self.tables["heads"].pivot(index="layer", columns="head", values="effect")
        axes = {"layer": effects.index.tolist(), "head": effects.columns.tolist()}
        return scores(effects.to_numpy(), axes, name="average indirect effect")

    def plots(self) -> dict[str, go.Figure]:
        """The methods, and the effect of every head."""
        from vlm_lens.figures.heads import head_map

        table = self.tables["heads"]
        effects = head_map(
            table, "effect", table.head(self.values["n_heads"]),
            title="Which heads carry the task?",
            subtitle="Average indirect effect on the answer's probability; marked: chosen heads",
        )  # fmt: skip
        return {**super().plots(), "heads": effects}
