"""Causal tracing: where, at which block, stands what tells one row of a task from another.

The stream is patched exactly between pairs of rows (symmetric replacement, NOTICE, arXiv
2406.16320), by picture or by name:

    recovered share = (patched - corrupt) / (clean - corrupt)

of the logit difference of both answers, with two controls in the same table: as many positions
drawn elsewhere, and the same patch judged by the answers of another pair.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from vlm_lens.layout.cells import Cells
from vlm_lens.layout.positions import All, Last
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.pairs import Pair, PairError, Pairs, PairScores, task_pairs
from vlm_lens.pairs.scores import ROUNDING
from vlm_lens.patching import NoDifference
from vlm_lens.recipes.base import RecipeError
from vlm_lens.recipes.parts.task_recipe import TaskRecipe
from vlm_lens.recipes.result import Result
from vlm_lens.scores.statistics import bootstrap_interval, sign_flip_p
from vlm_lens.tasks import Task
from vlm_lens.terms import MEAN, OTHER_ANSWERS, RANDOM_PLACES

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["CausalTracing", "CausalTracingResult"]

INPUT, LAST = "input", "last"
_STREAM = "blocks.*.hook_resid_pre"
_KEYS = ["task", "layer", "at"]


@dataclass(frozen=True)
class CausalTracing(TaskRecipe):
    """Patches the stream that enters each block, at the input, at the last position and elsewhere.

    The places are the `input` (every position at which the two prompts differ: the picture's, or
    the name's) and the `last` position. Pairs that the model does not answer are left out.

    Attributes:
        tasks: `"all"` for the paper's six, the name of a shipped task, a Task, or several.
        query: Whether inputs are given by picture or by name.
        pairs: How many pairs a task are drawn.
        n_examples: How many examples of the same modality stand before the query.
        direction: `"denoise"` (the recovered share) or `"noise"` (the lost share).
        size: Width and height that every picture is brought to; needed where pictures of different
            proportions have different numbers of patches.
        seed: The seed of pairs, examples and controls.
        split: Whose rows.
    """

    query: Literal["image", "text"] = "image"
    pairs: int = 20
    n_examples: int = 2
    direction: Literal["denoise", "noise"] = "denoise"
    size: tuple[int, int] | None = None
    seed: int = 1
    split: Literal["validation", "test"] = "test"

    def measure(self, vlm: HookedVLM) -> CausalTracingResult:
        """One call of `Pairs.patch` for each task, and one for the control."""
        found: list[pd.DataFrame] = []
        asked = []
        for task in self.progress(self.chosen_tasks(), "causal tracing"):
            drawn = self.drawn(vlm, task)
            try:
                pairs = drawn.solved(vlm)
            except PairError:
                pairs = ()
            asked.append({"task": task.name, "drawn": len(drawn), "solved": len(pairs)})
            for scores in self.patched(vlm, pairs) if pairs else ():
                named = scores.to_dataframe().rename(columns={scores.name: "share", "kind": "at"})
                found.append(named.dropna(subset="share").assign(task=task.name))
        if not found:
            raise RecipeError(
                f"{vlm.name} answers none of the pairs of {', '.join(a['task'] for a in asked)}: "
                "give more examples (n_examples=), or tasks that it can do."
            )
        rows = pd.concat(found, ignore_index=True)
        return CausalTracingResult(
            _means(rows),
            {"rows": rows, "pairs": pd.DataFrame(asked)},
            {"direction": self.direction},
            _notes(self),
        )

    def drawn(self, vlm: HookedVLM, task: Task) -> Pairs:
        """The pairs of a task."""
        return task_pairs(
            vlm, task, self.pairs, modality=self.query, examples=self.n_examples, size=self.size,
            split=self.split, seed=self.seed,
        )  # fmt: skip

    def patched(self, vlm: HookedVLM, pairs: Pairs) -> list[PairScores]:
        """Scores by place, and those of the last position by another pair's answers."""
        options = {"direction": self.direction, "progress": False}
        found = pairs.patch(vlm, _STREAM, at=self._places, **options)
        try:
            other = pairs.permuted(self.seed)
            judged = other.patch(vlm, _STREAM, at={OTHER_ANSWERS: Last()}, **options)
        except (PairError, NoDifference):  # too few answers, or none that moves at all
            return [found]
        gaps = [np.subtract(*some.measured(vlm)) for some in (other, pairs)]
        scaled = judged.values * (gaps[0] / gaps[1])[:, None, None]
        return [found, replace(judged, values=scaled)]

    def _places(self, pair: Pair) -> dict[str, Any]:
        """The input, as many positions elsewhere, and the last."""
        layout, changed = pair.clean.layout, pair.changed
        here = changed.resolve(layout)
        others = [c for c in (All() - changed - Last()).resolve(layout) if c not in here]
        generator = np.random.default_rng([self.seed, len(layout)])
        picked = generator.permutation(len(others))[: len(here)]
        drawn = Cells.of({"text": [others[i] for i in sorted(picked)]})
        return {INPUT: changed, RANDOM_PLACES: drawn, LAST: Last()}

    def validate(self) -> None:
        """Checks the fields."""
        super().validate()
        self.at_least(2, "pairs")
        self.at_least(0, "n_examples")
        fewest, task, _ = self.fewest_rows(self.split)
        if fewest < max(self.pairs, self.n_examples + 2):
            raise RecipeError(
                f"{self.named('pairs')} is {self.pairs} with {self.n_examples} examples; {task} "
                f"has {fewest} rows."
            )

    def validate_for(self, vlm: HookedVLM) -> None:
        """Checks that a model that is to see pictures can."""
        self.must_see(vlm, "query")


class CausalTracingResult(Result):
    """Shares of the difference between two rows of a task.

    `table` has a row for each `task` (and the `mean` of all their pairs, so that a task of more
    pairs counts for more), 0-based `layer` and place `at`, controls included: the mean `share`,
    `low` and `high`, a 95 % bootstrap interval over pairs, `p`, of the sign-flip permutation test
    that it is zero, and `pairs`. `tables["rows"]` has every pair, and `tables["pairs"]` says how
    many were drawn and solved.
    """

    def plots(self) -> dict[str, go.Figure]:
        """The share by block, a line a place."""
        from vlm_lens.figures.flow import flow_figure

        table = self.table
        many = table["task"].nunique() > 1
        lines = table[table["task"] == MEAN] if many else table
        name = "lost share" if self.values["direction"] == "noise" else "recovered share"
        return {
            "tracing": flow_figure(
                lines.rename(columns={"at": "edge", "share": "change"}),
                title=self.title,
                subtitle="The stream that enters a block is patched; band: 95 % over pairs",
                x="block (0-based)",
                y=name,
            )
        }


def _means(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over pairs of each task, and over the pairs of all tasks."""
    made = []
    everything = [rows, rows.assign(task=MEAN)] if rows["task"].nunique() > 1 else [rows]
    for part in everything:
        for key, mine in part.groupby(_KEYS, sort=False):
            values = mine["share"].to_numpy()[:, None]
            (low,), (high,) = bootstrap_interval(values)
            p = float(sign_flip_p(np.where(np.abs(values) < ROUNDING, 0, values))[0])
            made.append((*key, float(values.mean()), low, high, p, len(values)))
    return pd.DataFrame(made, columns=[*_KEYS, "share", "low", "high", "p", "pairs"])


def _notes(recipe: CausalTracing) -> tuple[str, ...]:
    what = "recovered" if recipe.direction == "denoise" else "lost"
    return (
        f"`share` is the {what} share of the logit difference of both rows' answers; means over "
        "pairs that the model answers as they say.",
        f"'{RANDOM_PLACES}': as many positions as the input has, drawn elsewhere. "
        f"'{OTHER_ANSWERS}': the last position's patch, judged by another pair's answers, as a "
        "share of the pair's own difference.",
    )
