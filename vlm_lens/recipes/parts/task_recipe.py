"""What recipes on tasks share: the field that names them."""

from __future__ import annotations

from dataclasses import dataclass

from vlm_lens.recipes.base import Recipe, RecipeError
from vlm_lens.recipes.parts.vector_sources import given_rows
from vlm_lens.tasks import PAPER_TASKS, Split, Task
from vlm_lens.terms import MEAN

__all__ = ["TaskRecipe"]


@dataclass(frozen=True)
class TaskRecipe(Recipe):
    """A recipe on one task or several.

    Attributes:
        tasks: `"all"` for the paper's six, the name of a shipped task, a Task, or several.
    """

    tasks: str | Task | tuple[str | Task, ...] = "all"

    def chosen_tasks(self) -> tuple[Task, ...]:
        """The tasks that the field `tasks` means.

        Raises:
            RecipeError: There are none, two of one name, or one called as the mean over tasks is.
        """
        names = PAPER_TASKS if self.tasks == "all" else self.tasks
        names = names if isinstance(names, tuple) else (names,)
        tasks = tuple(Task.load(name) if isinstance(name, str) else name for name in names)
        if len({task.name for task in tasks}) < len(tasks) or not tasks:
            raise RecipeError(f"{self.named('tasks')} must name different tasks: {self.tasks!r}.")
        if any(task.name == MEAN for task in tasks):
            raise RecipeError(
                f"{self.named('tasks')} has a task called {MEAN!r}, as tables call the mean over "
                "tasks: give it another name."
            )
        return tuple(given_rows(task, *self.modalities()) for task in tasks)

    def modalities(self) -> tuple[str, ...]:
        """How inputs are given; where one is a description, rows without one are left out."""
        return tuple(getattr(self, name) for name in ("source", "query") if hasattr(self, name))

    def fewest_rows(self, *splits: Split) -> tuple[int, str, Split]:
        """The least number of rows of a task and split, with the task's name and the split."""
        tasks = self.chosen_tasks()
        return min((len(task.rows(split)), task.name, split) for task in tasks for split in splits)

    def validate(self) -> None:
        """Checks that tasks are different."""
        self.chosen_tasks()
