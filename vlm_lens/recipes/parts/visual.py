"""What recipes about the picture of a query share: prompts, answers, patches that count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vlm_lens.layout.layout import Layout
from vlm_lens.layout.positions import Patches, Position, Together
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.recipes.base import RecipeError
from vlm_lens.recipes.parts.scoring import answer_token, bootstrap
from vlm_lens.recipes.parts.task_recipe import TaskRecipe
from vlm_lens.tasks import Row, Split, Task
from vlm_lens.terms import MEAN

__all__ = ["VisualRecipe", "drawn", "object_at", "other_patches", "right_tokens", "tabulated"]

_PLACE = "<image>"


@dataclass(frozen=True)
class VisualRecipe(TaskRecipe):
    """A recipe that asks about pictures of which the part that counts is known.

    Attributes:
        tasks: Tasks whose rows know their boxes, `"grid-color"` and the like.
        ask: What is written after the picture; `{input}` is the row's name.
        rows: How many queries a task.
        split: Whose rows are the queries.
        seed: The seed of everything drawn by lot.
    """

    tasks: str | Task | tuple[str | Task, ...] = "grid-color"
    ask: str = ""
    rows: int = 20
    split: Split = "test"
    seed: int = 1

    def validate(self) -> None:
        """Checks that rows know which part of their picture counts."""
        super().validate()
        self.at_least(1, "rows")
        for task in self.chosen_tasks():
            if any(not row.boxes for row in task.rows(self.split)[: self.rows]):
                raise RecipeError(
                    f"{self.named('tasks')}: it is not known which part of the pictures of "
                    f"{task.name} counts; rows need boxes=, as those of 'grid-...' have them."
                )
        try:
            self.ask.format(input="")
        except (KeyError, IndexError, ValueError):
            raise RecipeError(
                f"{self.named('ask')} is {self.ask!r}; the one thing to fill in is {{input}}."
            ) from None

    def validate_for(self, vlm: HookedVLM) -> None:
        """Checks that the model sees pictures, and has positions that are patches."""
        if not vlm.family.takes_images:
            raise RecipeError(f"{vlm.name} takes no pictures, and {type(self).__name__} asks some.")
        task = self.chosen_tasks()[0]
        image = vlm.as_prompt(self.query(task, task.rows(self.split)[0])).layout.image[0]
        if image.grid is None:
            raise RecipeError(
                f"No position in the text of {vlm.name} is a patch of a picture: "
                f"{image.text.why_no_grid or 'a resampler stands before it'}."
            )

    def query(self, task: Task, row: Row) -> RawPrompt:
        """The question about a row's picture."""
        made = task.query(row, "image")
        asked = self.ask.format(input=row.input)
        return RawPrompt(made.text.replace(_PLACE, _PLACE + asked, 1), made.images)


def object_at(row: Row, ring: int = 0) -> Position:
    """The patches that a row's answer hangs on, and rings around them."""
    found = tuple(Patches(0, box=box, ring=ring) for box in row.boxes)
    return found[0] if len(found) == 1 else Together(found)


def other_patches(layout: Layout, kept: Sequence[int]) -> list[int]:
    """The first picture's patches without some."""
    return [p for p in layout.image[0].positions if p not in set(kept)]


def right_tokens(vlm: HookedVLM, row: Row) -> list[int]:
    """The first tokens of a row's right answers."""
    return list(dict.fromkeys(answer_token(vlm, answer) for answer in row.answers))


def drawn(generator: np.random.Generator, among: Sequence[int], count: int) -> list[int]:
    """Some of the positions, by lot; all where there are fewer."""
    return sorted(generator.permutation(np.array(among))[:count].tolist())


def tabulated(rows: pd.DataFrame, by: list[str], value: str, more: dict[str, str]) -> pd.DataFrame:
    """Means by group, for each task and over tasks, with an interval by resampling rows of tasks.

    What is measured several times on one row of a task, at several heads say, is one observation,
    the mean: measurements on the same picture do not vary independently.

    Args:
        rows: One row a measurement, with columns `task` and `row`, the row of the task.
        by: The columns of the groups.
        value: The column whose mean has an interval.
        more: Other columns, and how they are summed up.
    """
    table = []
    for group, mine in rows.groupby(by, sort=False):
        tasks = {name: one for name, one in mine.groupby("task", sort=False)}
        entries = {name: [one] for name, one in tasks.items()}
        if len(tasks) > 1:
            entries[MEAN] = list(tasks.values())
        for name, parts in entries.items():
            by_row = [part.groupby("row")[value].mean().to_numpy(dtype=float) for part in parts]
            low, high = bootstrap(by_row)
            mean = float(np.mean([one.mean() for one in by_row]))
            others = {k: float(np.mean([part[k].agg(how) for part in parts]))
                      for k, how in more.items()}  # fmt: skip
            table.append({"task": name, **dict(zip(by, group, strict=True)), value: mean,
                          "low": low, "high": high, **others})  # fmt: skip
    return pd.DataFrame(table)
