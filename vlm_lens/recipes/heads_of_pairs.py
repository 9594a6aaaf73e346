"""Which heads carry a difference, by four methods on the same pairs of prompts, in one table.

PairPatching           exact: the share that a head's output at the last position recovers
AttributionPatching    the same, estimated by gradients
DirectLogitAttribution what a head adds to the logit difference by itself, at the last position
FunctionVectors        the average indirect effect of a head on spoiled examples (its own recipe)

With `contrast="task"` both prompts of a pair ask of the same entity, each with the instruction and
the examples of its own task: what differs is the task, and heads that carry it read what task
vectors hold. With `contrast="entity"` the question is the same and the entity differs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from vlm_lens.attribution import rank_correlation
from vlm_lens.attribution.attribute import METHODS
from vlm_lens.layout.positions import Last
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.pairs import Pair, Pairs, constraint_pairs, task_pairs
from vlm_lens.pairs.pair import PairError
from vlm_lens.recipes.base import RecipeError
from vlm_lens.recipes.parts.scoring import bootstrap
from vlm_lens.recipes.parts.task_recipe import TaskRecipe
from vlm_lens.recipes.result import Result
from vlm_lens.tasks import Task
from vlm_lens.terms import MEAN

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["AttributionPatching", "DirectLogitAttribution", "HeadsResult", "PairPatching",
           "PairRecipe", "heads_side_by_side"]  # fmt: skip

_Z = "blocks.*.attn.hook_z"


@dataclass(frozen=True)
class PairRecipe(TaskRecipe):
    """A recipe on pairs of prompts drawn from tasks, of which a model's unsolved are left out.

    Attributes:
        tasks: `"all"` for the paper's six, the name of a shipped task, a Task, or several.
        contrast: `"task"`: the same entity is asked for two things; `"entity"`: two entities are
            asked for the same.
        modality: Whether entities are given by picture or by name.
        n_pairs: How many pairs a task.
        n_examples: How many examples stand before the query.
        seed: The seed of the draw.
    """

    contrast: Literal["task", "entity"] = "task"
    modality: Literal["image", "text"] = "image"
    n_pairs: int = 8
    n_examples: int = 2
    seed: int = 0

    def pairs(self, vlm: HookedVLM, task: Task) -> Pairs:
        """The pairs of a task that the model solves.

        Raises:
            RecipeError: It solves none.
        """
        options = {"modality": self.modality, "examples": self.n_examples, "seed": self.seed}
        try:
            if self.contrast == "entity":
                drawn = task_pairs(vlm, task, self.n_pairs, instruction=True, **options)
            else:
                drawn = constraint_pairs(vlm, task, self.other(task), self.n_pairs, **options)
            return drawn.solved(vlm)
        except PairError as error:
            raise RecipeError(f"{task.name}: {error}") from None

    def other(self, task: Task) -> Task:
        """Another task over the same entities: the first of the recipe's, or of the shipped ones.

        Raises:
            RecipeError: There is none.
        """
        tasks = {one.name: one for one in self.chosen_tasks()}
        tasks |= {name: Task.load(name) for name in Task.names() if name not in tasks}
        asked = {row.input for row in task.rows("test")}
        for name, one in tasks.items():
            if name != task.name and asked <= {row.input for row in one}:
                return one
        raise RecipeError(
            f"There is no other task over the entities of {task.name}: take 'entity'."
        )

    def drawn(self, vlm: HookedVLM) -> tuple[dict[str, Pairs], tuple[str, ...]]:
        """Pairs by task, and a note on each task that has none."""
        found, notes = {}, []
        for task in self.chosen_tasks():
            try:
                found[task.name] = self.pairs(vlm, task)
            except RecipeError as error:
                notes.append(str(error))
        if not found:
            raise RecipeError(notes[0])
        counts = ", ".join(f"{name} {len(pairs)}" for name, pairs in found.items())
        return found, (f"Pairs that the model solves: {counts}.", *notes)

    def validate(self) -> None:
        """Checks the fields."""
        super().validate()
        self.at_least(1, "n_pairs")
        self.at_least(0, "n_examples")

    def validate_for(self, vlm: HookedVLM) -> None:
        """Checks that a model that is to see pictures can."""
        self.must_see(vlm, "modality")


@dataclass(frozen=True)
class _HeadsRecipe(PairRecipe):
    def measure(self, vlm: HookedVLM) -> HeadsResult:
        """The share of each head."""
        drawn, notes = self.drawn(vlm)
        found = {}
        for name, pairs in self.progress(list(drawn.items()), type(self).__name__):
            shares = self.shares(vlm, pairs)
            found[name] = shares[~np.isnan(shares).all((1, 2))]  # pairs without a difference
        rows = [row for name, values in found.items() for row in _rows(name, [values])]
        if len(found) > 1:
            rows += _rows(MEAN, list(found.values()))
        columns = ["task", "layer", "head", "share", "low", "high"]
        return HeadsResult(pd.DataFrame(rows, columns=columns), {}, {}, notes)

    @abstractmethod
    def shares(self, vlm: HookedVLM, pairs: Pairs) -> np.ndarray:
        """`[pair, layer, head]`, NaN for pairs without a difference and blocks without heads."""


@dataclass(frozen=True)
class PairPatching(_HeadsRecipe):
    """Puts each head's clean output at the last position into the corrupt run, exactly.

    Attributes:
        tasks: As for `PairRecipe`, and so the other fields.
    """

    def shares(self, vlm: HookedVLM, pairs: Pairs) -> np.ndarray:
        """The recovered share of each head."""
        found = pairs.patch(vlm, _Z, heads="each", at=Last(), progress=False)
        return _by_block(vlm, found.values.to_numpy())


@dataclass(frozen=True)
class AttributionPatching(_HeadsRecipe):
    """Estimates what PairPatching measures, by two forwards and one backward a pair.

    Attributes:
        tasks: As for `PairRecipe`, and so the other fields.
        method: `"gradient"`, or `"ig"`, integrated from one prompt to the other (prompts of one
            shape).
    """

    method: str = "gradient"

    def shares(self, vlm: HookedVLM, pairs: Pairs) -> np.ndarray:
        """The estimated share of each head."""
        options = {"method": self.method, "progress": False}
        found = pairs.attribute(vlm, _Z, heads="each", at=Last(), **options)
        return _by_block(vlm, found.values.to_numpy())

    def validate(self) -> None:
        """Checks the fields."""
        super().validate()
        if self.method not in METHODS:
            raise RecipeError(f"{self.named('method')} is 'gradient' or 'ig', not {self.method!r}.")


@dataclass(frozen=True)
class DirectLogitAttribution(_HeadsRecipe):
    """What each head adds to the logit difference of a pair's two answers, by itself.

    Of the clean prompt, at its last position, as a share of the whole difference; see
    `vlm_lens.decompose`.

    Attributes:
        tasks: As for `PairRecipe`, and so the other fields.
    """

    def shares(self, vlm: HookedVLM, pairs: Pairs) -> np.ndarray:
        """The direct share of each head."""
        return np.stack([_direct(vlm, pair) for pair in pairs])


class HeadsResult(Result):
    """The share of every head, by task.

    `table` has a row for each `task` (and their `mean`), `layer` and `head`: `share`, and `low` and
    `high`, a 95 % interval by resampling pairs.
    """

    def summary(self) -> pd.DataFrame:
        """The ten heads with the largest shares, of the mean where there are several tasks."""
        names = self.table["task"].unique()
        shown = self.table[self.table["task"] == (MEAN if MEAN in names else names[0])]
        order = np.argsort(-np.abs(shown["share"].to_numpy()), kind="stable")[:10]
        return shown.iloc[order]

    def plots(self) -> dict[str, go.Figure]:
        """The share of every head, blocks by heads."""
        from vlm_lens.figures.heads import head_map

        best = self.summary()
        shown = self.table[self.table["task"] == best["task"].iloc[0]]
        return {
            "heads": head_map(
                shown, "share", best, title=self.title, subtitle="Share of the difference; marked: "
                "the ten largest",
            )
        }  # fmt: skip


def heads_side_by_side(results: dict[str, Result | pd.DataFrame]) -> pd.DataFrame:
    """Several methods' numbers for each head in one table, with their rank correlations.

    Args:
        results: A name -> a `HeadsResult`, a `FunctionVectorsResult` (its average indirect
            effects), or a table with `layer`, `head` and one column of numbers.

    Returns:
        A row a head, a column a method, the heads that are best on average over the methods' ranks
        first; `attrs["rank correlation"]` holds Spearman's correlation of each two methods.

    Raises:
        RecipeError: A result without heads.
    """
    columns = {name: _column(name, one) for name, one in results.items()}
    table = pd.concat(columns, axis=1).dropna()
    mean = table.abs().rank(ascending=False).mean(axis=1)
    table = table.loc[mean.sort_values(kind="stable").index].reset_index()
    names = list(columns)
    table.attrs["rank correlation"] = {
        f"{a} / {b}": rank_correlation(table[a].to_numpy(), table[b].to_numpy())
        for i, a in enumerate(names) for b in names[i + 1 :]
    }  # fmt: skip
    return table


def _column(name: str, result: Result | pd.DataFrame) -> pd.Series:
    table, number = result, "share"
    if isinstance(result, Result):
        table = result.tables.get("heads", result.table)
    number = "effect" if "effect" in table else number
    if not {"layer", "head", number} <= set(table.columns):
        raise RecipeError(f"{name!r} has no numbers by layer and head.")
    if "task" in table:
        names = table["task"].unique()
        table = table[table["task"] == (MEAN if MEAN in names else names[0])]
    return table.set_index(["layer", "head"])[number].sort_index()


def _by_block(vlm: HookedVLM, shares: np.ndarray) -> np.ndarray:
    """Shares of the blocks that have heads, and NaN in those that mix positions otherwise."""
    points = vlm.architecture.points
    layers = [points[name].layer for name in points.match(_Z)]
    whole = np.full((len(shares), vlm.cfg.n_layers, vlm.cfg.n_heads), np.nan)
    whole[:, layers] = shares.reshape(len(shares), len(layers), -1)
    return whole


def _direct(vlm: HookedVLM, pair: Pair) -> np.ndarray:
    """Shares of the difference of both logits, `[layer, head]`."""
    both = [vlm.decompose(pair.clean, token=t) for t in (pair.answer, pair.other)]
    difference = both[0] - both[1]
    heads = difference.heads().values.to_numpy()
    whole = np.full((vlm.cfg.n_layers, vlm.cfg.n_heads), np.nan)
    whole[: heads.shape[0], : heads.shape[1]] = heads
    return whole / float(difference.values.sum())


def _rows(name: str, groups: Sequence[np.ndarray]) -> list[tuple]:
    means = np.mean([g.mean(0) for g in groups], 0)
    rows = []
    for layer, head in np.argwhere(~np.isnan(means)).tolist():
        interval = bootstrap([g[:, layer, head] for g in groups])
        rows.append((name, layer, head, float(means[layer, head]), *interval))
    return rows
