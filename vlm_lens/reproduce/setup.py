"""On what the experiments are run: a model, its base language model, tasks and seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lens.errors import VLMLensError
from vlm_lens.recipes.base import plain
from vlm_lens.tasks import PAPER_TASKS, Task, published
from vlm_lens.tasks.rows import Split

if TYPE_CHECKING:
    from vlm_lens.recipes import Recipe

__all__ = [
    "ReproduceError",
    "Setup",
    "choose_further",
    "choose_tasks",
    "find_data",
]

_PAPER_MODEL = {"llava": "LLaVA-v1.5", "idefics2": "Idefics2", "fuyu": "Mantis-Fuyu"}
_WITHOUT_BASE = {
    "fuyu": "no language model from which Mantis-Fuyu was made has been published; the paper has "
    "no row for it either",
}

_QUESTIONS = {  # of VQAv2
    "food-class": "What kind of food is this?",
    "shirt-color": "What color is the man's shirt?",
    "man-holding": "What is the man holding?",
}
_STAND_INS = ("food-kind", "animal-class", "country-continent")


class ReproduceError(VLMLensError):
    """A reproduction that cannot be done as asked."""


@dataclass(frozen=True)
class Setup:
    """What every experiment on a model gets.

    Attributes:
        model: The model's name, folder or Hub id.
        family: Its family's name.
        base: The language model it was made from; None where there is none.
        unrelated: A language model of the same width that it was not made from, if one is known.
        tasks: The tasks: names of shipped ones, or Tasks of one's own data.
        further: The tasks of Table 4; see `choose_further`.
        seeds: Seeds 1 to this many.
        batch_size: How many prompts run together; None for each recipe's own.
    """

    model: str
    family: str
    base: str | None = None
    tasks: tuple[str | Task, ...] = PAPER_TASKS
    further: tuple[str | Task, ...] = ()
    seeds: int = 3
    batch_size: int | None = None
    unrelated: str | None = None

    @property
    def paper_model(self) -> str:
        """The paper's model to stand beside: that of the same family, Idefics2 for others."""
        return _PAPER_MODEL.get(self.family, "Idefics2")

    @property
    def label(self) -> str:
        """The model's name in tables and of its folder; of a path its last part."""
        return Path(self.model).resolve().name if Path(self.model).is_dir() else self.model

    @property
    def is_organism(self) -> bool:
        """Whether the model ships with the package, and knows its tasks only."""
        from vlm_lens import zoo

        return self.model in zoo.names()

    @property
    def shipped(self) -> bool:
        """Whether the tasks are those of the package."""
        return all(isinstance(task, str) for task in self.tasks)

    @property
    def asks_questions(self) -> bool:
        """Whether the tasks of Table 4 are the paper's questions, not stand-ins."""
        return all(isinstance(task, Task) for task in self.further)

    @property
    def why_no_base(self) -> str:
        """Why experiments with a base language model are left out."""
        reason = _WITHOUT_BASE.get(self.family, f"no base language model of {self.model} is known")
        return f"{reason}; name one with --base"

    @property
    def task_names(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(t if isinstance(t, str) else t.name for t in self.tasks)

    def task(self, name: str) -> str | Task:
        """The task of that name, as a recipe takes it."""
        return self.tasks[self.task_names.index(name)]

    def fewest(self, split: Split) -> int:
        """The number of rows of a split, of the task that has the fewest."""
        tasks = (Task.load(task) if isinstance(task, str) else task for task in self.tasks)
        return min(len(task.rows(split)) for task in tasks)

    def make(self, recipe: type[Recipe], **fields: Any) -> Recipe:
        """A recipe with the setup's tasks, seeds and batch size, as far as it has such fields.

        Args:
            recipe: The recipe's class.
            **fields: Further fields; they go before the setup's.
        """
        shared = {"tasks": self.tasks, "seeds": self.seeds, "batch_size": self.batch_size}
        known = {field.name for field in dataclasses.fields(recipe)}
        given = {k: v for k, v in shared.items() if k in known and v is not None}
        return recipe(**(given | fields))

    def to_dict(self) -> dict[str, Any]:
        """What its numbers depend on, as plain JSON data."""
        return {
            "model": self.model,
            "base": self.base,
            "unrelated": self.unrelated,
            "tasks": [_content(task) for task in self.tasks],
            "further": [_content(task) for task in self.further],
            "seeds": self.seeds,
        }


def _content(task: str | Task) -> Any:
    """A task by its name and a digest of its rows, shipped or not: rows may change."""
    return plain(Task.load(task) if isinstance(task, str) else task)


def choose_tasks(names: Sequence[str] = (), data: Path | None = None) -> tuple:
    """The tasks to run: shipped ones, or the same from a folder as the paper's authors publish it.

    Args:
        names: Which; the paper's six if empty.
        data: The folder; the shipped tasks if None.

    Raises:
        TaskError: No such task, or the folder lacks a file of it, named in the message.
        ReproduceError: A task is named twice.
    """
    names = tuple(names) or PAPER_TASKS
    if len(set(names)) < len(names):
        raise ReproduceError(f"--tasks names a task twice: {', '.join(names)}.")
    if data is None:
        for name in names:
            Task.load(name)
        return names
    return tuple(Task.from_folder(data, name) for name in names)


def find_data(data: str | Path | None) -> Path | None:
    """The folder of the option --data: a folder, or a data set of the Hub, fetched once.

    Raises:
        ReproduceError: It is neither.
        TaskError: The data set is not in the cache and cannot be had.
    """
    if data is None or Path(data).is_dir():
        return None if data is None else Path(data)
    if str(data).count("/") != 1 or str(data).startswith(("/", ".")):
        raise ReproduceError(
            f"--data {data} is not a folder, nor the id of a data set on the Hub. A folder must "
            "hold annotations/<task>_val.json and annotations/<task>_test.json, with pictures at "
            "the paths that these give."
        )
    return published.fetch(str(data))


def choose_further(tasks: Sequence[str | Task], data: Path | None = None) -> tuple:
    """The tasks of Table 4: questions about photographs, or what stands in for them.

    Args:
        tasks: The tasks that were chosen: where they are fewer, so are the stand-ins.
        data: A folder; if it holds the paper's three questions, it is they.
    """
    if data is not None and set(_QUESTIONS) <= set(published.task_names(published.find(data))):
        return tuple(
            Task.from_folder(data, name, instruction=question)
            for name, question in _QUESTIONS.items()
        )
    return _STAND_INS[: len(tasks)]
