"""What the tasks that ship with the package are called and what they ask."""

from __future__ import annotations

from dataclasses import dataclass

from vlm_lens.errors import near_matches
from vlm_lens.tasks.rows import TaskError

__all__ = ["EXTRA_TASKS", "GRID_TASKS", "PAPER_TASKS", "SPECS", "WORD_TASKS", "TaskSpec", "spec"]


@dataclass(frozen=True)
class TaskSpec:
    """What a task asks, apart from its rows.

    Attributes:
        name: The task's name, `{domain}-{attribute}`.
        domain: `country`, `animal`, `food`, `grid` or `word`; tasks of one domain share inputs,
            pictures and split (those of words do not).
        instruction: The task in words; ends in a colon, at which a vector is read.
        task_word: The one word for the task, looked for in what the logit lens decodes.
    """

    name: str
    domain: str
    instruction: str
    task_word: str


_PAPER = (
    ("country-capital", "The capital city of the country:", "capital"),
    ("country-currency", "The last word of the official currency of the country:", "currency"),
    ("animal-latin", "The scientific name of the animal's species in latin:", "species"),
    ("animal-young", "The term for the baby of the animal:", "baby"),
    ("food-color", "The color of the food:", "color"),
    ("food-flavor", "The flavor descriptor of the food:", "flavor"),
)
_EXTRA = (
    ("country-continent", "The continent of the country:", "continent"),
    ("country-language", "The main official language of the country:", "language"),
    ("animal-class", "The broad class of the animal:", "class"),
    ("animal-group", "The collective noun for a group of the animal:", "group"),
    ("food-kind", "The kind of the food:", "kind"),
    ("food-texture", "The texture descriptor of the food:", "texture"),
)

_GRID = (
    ("grid-color", "The color of the shape that is not gray:", "color"),
    ("grid-shape", "The name of the shape that is not gray:", "shape"),
    ("grid-position", "The cell of the shape that is not gray:", "cell"),
    ("grid-count", "The number of gray shapes:", "number"),
)

_WORDS = (
    ("word-plural", "The plural of the word:", "plural"),
    ("word-capitals", "The word in capital letters:", "capital"),
    ("word-opposite", "The opposite of the word:", "opposite"),
    ("word-past", "The past tense of the verb:", "past"),
)


def _specs(rows: tuple[tuple[str, str, str], ...]) -> dict[str, TaskSpec]:
    return {
        name: TaskSpec(name, name.partition("-")[0], instruction, word)
        for name, instruction, word in rows
    }


SPECS: dict[str, TaskSpec] = _specs(_PAPER + _EXTRA)
_DRAWN: dict[str, TaskSpec] = _specs(_GRID)
_RULED: dict[str, TaskSpec] = _specs(_WORDS)
PAPER_TASKS: tuple[str, ...] = tuple(name for name, *_ in _PAPER)
EXTRA_TASKS: tuple[str, ...] = tuple(name for name, *_ in _EXTRA)
GRID_TASKS: tuple[str, ...] = tuple(_DRAWN)
WORD_TASKS: tuple[str, ...] = tuple(_RULED)


def spec(name: str) -> TaskSpec:
    """Return what a task of the package asks.

    Args:
        name: One of `Task.names()`, of `GRID_TASKS` or of `WORD_TASKS`.

    Returns:
        The task's spec.

    Raises:
        TaskError: No shipped task has this name.
    """
    known = SPECS | _DRAWN | _RULED
    if name not in known:
        raise TaskError(
            f"no shipped task is called {name!r}.{near_matches(name, known)} "
            f"There are: {', '.join(known)}. "
            "For your own data use Task.from_rows, Task.from_csv or Task.from_folder."
        )
    return known[name]
