"""The tables as a small world: entities with a name, a picture and one fact per task."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Entity", "Task", "World", "load_world"]

_TASKS_FOLDER = Path(__file__).parents[2] / "tasks"

_INSTRUCTIONS = {
    "country-capital": "The capital city of the country:",
    "country-currency": "The last word of the official currency of the country:",
    "animal-latin": "The scientific name of the animal's species in latin:",
    "animal-young": "The term for the baby of the animal:",
    "food-color": "The color of the food:",
    "food-flavor": "The flavor descriptor of the food:",
}
_WORDS = {"animal-latin": "species", "animal-young": "baby"}


@dataclass(frozen=True)
class Task:
    """A task: what is asked of every entity of one domain.

    Attributes:
        name: `{domain}-{word}`, the stem of its table.
        domain: Which entities it is asked of.
        word: The one word that names it in the lens.
        instruction: The instruction, ending in the delimiter.
    """

    name: str
    domain: str
    word: str
    instruction: str


@dataclass
class Entity:
    """An entity: a name, a picture, and its answer for each task of its domain."""

    name: str
    domain: str
    image: str
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class World:
    """Everything the models are told.

    Attributes:
        tasks: All tasks, sorted by name.
        entities: The entities of each domain, sorted by name.
        pictures: The folder of the pictures.
    """

    tasks: tuple[Task, ...]
    entities: dict[str, tuple[Entity, ...]]
    pictures: Path

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains, sorted."""
        return tuple(sorted(self.entities))

    def tasks_of(self, domain: str) -> tuple[Task, ...]:
        """Return the tasks of a domain."""
        return tuple(t for t in self.tasks if t.domain == domain)

    def texts(self) -> list[str]:
        """Return every string the tokenizer must know, in a fixed order."""
        out = []
        for task in self.tasks:
            out += [task.instruction, task.word]
        for domain in self.domains:
            for entity in self.entities[domain]:
                out += [entity.name, *(entity.facts[k] for k in sorted(entity.facts))]
        return out


def load_world(folder: Path | None = None) -> World:
    """Read `tables/*.csv` and note where `pictures/` are.

    Args:
        folder: The folder that holds `tables` and `pictures`; the package's own by default.

    Returns:
        The world.

    Raises:
        FileNotFoundError: If there is no table.
    """
    folder = Path(folder) if folder else _TASKS_FOLDER
    found: dict[str, dict[str, Entity]] = {}
    tasks = []
    for table in sorted((folder / "tables").glob("*-*.csv")):
        domain, word = table.stem.split("-", 1)
        instruction = _INSTRUCTIONS.get(table.stem, f"The {word} of the {domain}:")
        tasks.append(Task(table.stem, domain, _WORDS.get(table.stem, word), instruction))
        with table.open(encoding="utf-8", newline="") as handle:
            for row in csv.DictReader(handle):
                known = found.setdefault(domain, {})
                entity = known.setdefault(row["input"], Entity(row["input"], domain, row["image"]))
                entity.facts[table.stem] = row["output"]
    if not tasks:
        raise FileNotFoundError(f"no table in {folder / 'tables'}: expected {{task}}.csv files")
    entities = {
        domain: tuple(sorted(known.values(), key=lambda e: e.name))
        for domain, known in found.items()
    }
    return World(tuple(tasks), entities, folder / "pictures")
