"""Back-patching: what a picture's tokens hold in a later block, written back to an earlier one.

Nikankin et al. 2025 (arXiv 2506.09047), section 6. Biran et al. 2024 (arXiv 2406.12775) do so in
language models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vlm_lens.interventions import ActivationPatch
from vlm_lens.interventions.base import compose
from vlm_lens.layout.positions import All, Images, Last, Position, Text
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.recipes.base import RecipeError
from vlm_lens.recipes.parts.method_recipe import MethodRecipe, MethodResult, with_methods
from vlm_lens.recipes.parts.scoring import score
from vlm_lens.recipes.parts.transfer_result import Run
from vlm_lens.recipes.parts.vector_sources import TaskVectors, few_shot
from vlm_lens.tasks import Task
from vlm_lens.terms import PATCH, PROMPT

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["BackPatching", "BackPatchingResult"]

Pair = tuple[int, int]  # source block, target block
_PLACES = {"images": Images(), "text": Text(), "last": Last(), "all": All()}
_UNDER = {"prompt": PROMPT, "patch": PATCH}


@dataclass(frozen=True)
class BackPatching(MethodRecipe):
    """Gives the tokens of pictures in an earlier block what they come to hold in a later one.

    A picture's tokens may hold what a question needs only in blocks in which later positions no
    longer look for it. So a run's output of block *source* at these positions is written, in a
    second run, over the output of block *target*, `target < source`. The pair is chosen on the
    validation rows, for all tasks.

    *Prompt, back-patched* does so in the few-shot prompts of *Prompt*; *Patch, back-patched* in the
    bare queries of *Patch*, together with the task vector. Controls: *... from another row* writes
    what the next row's prompt holds at these positions; *... forward* exchanges source and target.

    Unlike the paper: single blocks, not windows of them; the tasks of this package. Prompts with
    equally many such positions run together; where one has no equal, or `batch_size` is 1, the
    control from another row is left out.

    Attributes:
        at: Where: `"images"`, `"text"`, `"last"`, `"all"`, or a Position.
        under: What is back-patched: `"prompt"`, `"patch"`, or both.
        blocks: The blocks that may be source or target; all by default.
    """

    at: str | Position = field(default="images", kw_only=True)
    under: tuple[Literal["prompt", "patch"], ...] = field(default=("prompt", "patch"), kw_only=True)
    blocks: tuple[int, ...] | None = field(default=None, kw_only=True)

    def measure(self, vlm: HookedVLM) -> BackPatchingResult:
        """The paper's methods, the sweep over pairs, the test of the best."""
        reference = self.paper().measure(vlm)
        vectors = self.paper().reader(vlm)
        tables, best, runs = [], {}, []
        for under in self.under:
            setup = partial(self.setup, under=under, vectors=vectors, layer=reference.layer)
            swept = self.swept(vlm, setup, under)
            best[under] = best_pair(swept)
            tables.append(swept.assign(under=under))
            runs += self.tested(vlm, setup, under, best[under])
        notes = [
            f"{_UNDER[under]}, back-patched: {self.at}, output of block {source} written over that "
            f"of block {target} (0-based), chosen on the validation rows."
            for under, (source, target) in best.items()
        ]
        return with_methods(
            reference, runs, self, kind=BackPatchingResult, notes=notes,
            tables={"pairs": pd.concat(tables, ignore_index=True)},
            values={"pairs": {under: list(pair) for under, pair in best.items()}},
        )  # fmt: skip

    # ------------------------------------------------------------------ the steps

    def setup(
        self,
        task: Task,
        seed: int,
        split: Literal["validation", "test"],
        *,
        under: str,
        vectors: TaskVectors,
        layer: int,
    ) -> tuple[Sequence[RawPrompt], Any]:
        """The prompts of a split, and what is changed in them beside."""
        if under == "prompt":
            return few_shot(task, self.source, self.query, seed=seed, n=self.n_examples,
                            split=split), ()  # fmt: skip
        queries = [task.query(row, self.query) for row in task.rows(split)]
        return queries, self.paper().patch(layer, vectors(task, seed))

    def swept(self, vlm: HookedVLM, setup: Callable, under: str) -> pd.DataFrame:
        """Accuracy on the validation rows of every pair; a pair of -1 is without."""
        pairs, rows = self.pairs(vlm), []
        for task in self.chosen_tasks():
            for seed in self.used_seeds():
                prompts, also = setup(task, seed, "validation")
                what = f"{task.name}: pairs, {under}"
                tokens = self.predicted(vlm, prompts, [None, *pairs], also, what)
                scores = self.scored(vlm, tokens, task, "validation")
                for pair, correct in zip([(-1, -1), *pairs], scores.correct, strict=True):
                    rows.append((task.name, seed, *pair, float(correct.mean())))
        return pd.DataFrame(rows, columns=["task", "seed", "source", "target", "accuracy"])

    def tested(self, vlm: HookedVLM, setup: Callable, under: str, pair: Pair) -> list[Run]:
        """The test rows, back-patched, with the controls."""
        name = f"{_UNDER[under]}, back-patched"
        ways: dict[str, tuple[Pair, int]] = {name: (pair, 0)}  # pair, rows further
        if self.controls:
            ways[f"{name} forward"] = pair[::-1], 0
            ways[f"{name} from another row"] = pair, 1
        made = {
            (task, seed): setup(task, seed, "test")
            for task in self.chosen_tasks()
            for seed in self.used_seeds()
        }
        if self.controls and any(self.alone(vlm, prompts) for prompts, _ in made.values()):
            ways.popitem()
        runs = []
        for task in self.chosen_tasks():
            answers = [row.answers for row in task.test]
            for seed in self.used_seeds():
                prompts, also = made[task, seed]
                tokens = torch.cat(
                    [
                        self.predicted(vlm, prompts, [one], also, f"{task.name}: {way}", roll)
                        for way, (one, roll) in ways.items()
                    ]
                )
                scores = self.scored(vlm, tokens, task, "test")
                runs += [Run(task, way, seed, answers, scores[i]) for i, way in enumerate(ways)]
        return runs

    def predicted(
        self,
        vlm: HookedVLM,
        prompts: Sequence[RawPrompt],
        pairs: Sequence[Pair | None],
        also: Any,
        what: str,
        roll: int = 0,
    ) -> Tensor:
        """The next token of each prompt under each pair, `[pairs, prompts]`."""
        columns = torch.empty(len(pairs), len(prompts), dtype=torch.long)
        batches: list[np.ndarray] = []
        for rows in self.alike(vlm, prompts):
            n = math.ceil(len(rows) / self.batch_size)
            if roll:  # no row may be alone
                n = max(1, min(n, len(rows) // 2))
            batches += np.array_split(rows, n)
        for rows in self.progress(batches, what):
            prompt = vlm.as_prompt([prompts[i] for i in rows])
            activations = self.activations(
                vlm, prompt, sorted({pair[0] for pair in pairs if pair}), roll
            )
            edits = [
                compose([*(self.write(activations, pair) if pair else ()), *compose(also)])
                for pair in pairs
            ]
            swept = vlm.sweep(prompt, edits, progress=False).stack("token_id")
            columns[:, rows.tolist()] = swept.reshape(len(edits), len(prompt))
        return columns

    def alike(self, vlm: HookedVLM, prompts: Sequence[RawPrompt]) -> list[list[int]]:
        """The prompts' numbers, those with equally many positions to write to together."""
        found: dict[int, list[int]] = {}
        for start in range(0, len(prompts), self.batch_size):
            layouts = vlm.as_prompt(list(prompts[start : start + self.batch_size])).layouts
            for i, layout in enumerate(layouts, start):
                found.setdefault(len(self.place().resolve(layout)), []).append(i)
        return list(found.values())

    def alone(self, vlm: HookedVLM, prompts: Sequence[RawPrompt]) -> bool:
        """Whether a prompt has no other to take from."""
        return self.batch_size == 1 or min(map(len, self.alike(vlm, prompts))) == 1

    def activations(
        self, vlm: HookedVLM, prompt: Any, blocks: Sequence[int], roll: int
    ) -> dict[int, Tensor]:
        """What the positions hold after each block: `[rows, positions, d_model]`."""
        names = [f"blocks.{block}.hook_resid_post" for block in blocks]
        _, cache = vlm.run_with_cache(
            prompt, names_filter=names, positions=self.place(), last_logits=1
        )
        return {b: cache[n].roll(roll, 0) for b, n in zip(blocks, names, strict=True)}

    def write(self, activations: dict[int, Tensor], pair: Pair) -> list[ActivationPatch]:
        """What the source block gave, over what the target block gives."""
        source, target = pair
        point = f"blocks.{target}.hook_resid_post"
        return [ActivationPatch(point, at=self.place(), value=activations[source])]

    def scored(self, vlm: HookedVLM, tokens: Tensor, task: Task, split: str) -> Any:
        """Predictions judged."""
        answers = [row.answers for row in task.rows(split)]
        return score(vlm, tokens, answers, ignore_case=self.ignore_case)

    # ------------------------------------------------------------------ fields

    def place(self) -> Position:
        """The positions that the field `at` means."""
        return _PLACES[self.at] if isinstance(self.at, str) else self.at

    def pairs(self, vlm: HookedVLM) -> list[Pair]:
        """Every pair of a later source and an earlier target."""
        blocks = sorted(range(vlm.cfg.n_layers) if self.blocks is None else self.blocks)
        return [(source, target) for target in blocks for source in blocks if source > target]

    def validate(self) -> None:
        """Checks the fields."""
        super().validate()
        if isinstance(self.at, str) and self.at not in _PLACES:
            raise RecipeError(
                f"BackPatching.at is {self.at!r}; it is one of {', '.join(map(repr, _PLACES))}, or "
                "a Position."
            )
        self.some_different("under")
        if self.blocks is not None and (len(set(self.blocks)) < 2 or min(self.blocks) < 0):
            raise RecipeError(
                f"BackPatching.blocks is {self.blocks!r}; give two blocks or more, from 0 on."
            )
        pictures = self.query == "image" or (self.source == "image" and "patch" not in self.under)
        if self.at == "images" and not pictures:
            raise RecipeError(
                "BackPatching.at is 'images', and there is no picture in the prompts: set "
                "BackPatching.at='text', or query='image'."
            )

    def validate_for(self, vlm: HookedVLM) -> None:
        """Checks the blocks."""
        self.a_block(vlm, "blocks")


def best_pair(swept: pd.DataFrame) -> Pair:
    """The pair of the highest accuracy, averaged over seeds, then tasks; of equals the first."""
    swept = swept[swept["source"] >= 0]
    by_task = swept.groupby(["task", "target", "source"])["accuracy"].mean()
    target, source = by_task.groupby(["target", "source"]).mean().round(12).idxmax()
    return int(source), int(target)


class BackPatchingResult(MethodResult):
    """Accuracies with back-patching beside those without.

    `tables["pairs"]` has the validation accuracy of every pair of source and target block (-1 for
    none), by `under` (`prompt`, `patch`), task and seed.
    """

    def matrix(self, under: str) -> pd.DataFrame:
        """Mean validation accuracy, target blocks by source blocks.

        Raises:
            RecipeError: Nothing was swept under this name.
        """
        table = self.tables["pairs"]
        mine = table[(table["under"] == under) & (table["source"] >= 0)]
        if mine.empty:
            raise RecipeError(f"There is no sweep under {under!r}: {sorted(set(table['under']))}.")
        return mine.pivot_table(index="target", columns="source", values="accuracy")

    def without(self, under: str) -> float:
        """Mean validation accuracy without back-patching."""
        table = self.tables["pairs"]
        return float(table[(table["under"] == under) & (table["source"] < 0)]["accuracy"].mean())

    def plots(self) -> dict[str, go.Figure]:
        """The methods, and a map of pairs for each sweep."""
        from vlm_lens.figures.pairs import pair_map

        maps = {
            f"pairs_{u}": pair_map(
                self.matrix(u), without=self.without(u), chosen=tuple(pair), under=u
            )
            for u, pair in self.values["pairs"].items()
        }
        return {**super().plots(), **maps}
