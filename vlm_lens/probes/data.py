"""What a probe is trained on: prompts with labels, and which entity each is about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from vlm_lens.errors import VLMLensError
from vlm_lens.keywords import Answering
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.tasks.rows import Modality
from vlm_lens.tasks.task import Task
from vlm_lens.tokens import IMAGE


class ProbeError(VLMLensError):
    """Examples of which no probe can be made."""


@dataclass(frozen=True)
class ProbeSet(Answering):
    """Prompts, what is to be read from each, and which entity each is about.

    Attributes:
        prompts: Texts or RawPrompts.
        labels: A class of each.
        entities: Whom or what each is about; examples of one entity never stand on both sides of a
            split. By default each prompt is an entity of its own, equal ones being the same.
        name: What is read.
    """

    prompts: tuple[Any, ...]
    labels: tuple[str, ...]
    entities: tuple[str, ...] = ()
    name: str = "label"

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {label}" for label, n in Counter(self.labels).most_common(8))
        more = f", {n - 8} labels more" if (n := len(set(self.labels))) > 8 else ""
        return (
            f"ProbeSet({self.name}: {len(self.prompts)} prompts of {len(set(self.entities))} "
            f"entities; {counts}{more})"
        )

    def __post_init__(self):
        object.__setattr__(self, "prompts", tuple(self.prompts))
        object.__setattr__(self, "labels", tuple(map(str, self.labels)))
        entities = tuple(map(str, self.entities)) or _by_content(self.prompts)
        object.__setattr__(self, "entities", entities)
        sizes = {
            "prompts": len(self.prompts),
            "labels": len(self.labels),
            "entities": len(entities),
        }
        if len(set(sizes.values())) > 1:
            raise ProbeError(f"There are {sizes}: one label and one entity for each prompt.")
        if len(set(self.labels)) < 2:
            raise ProbeError("A probe tells at least two classes apart; all labels are the same.")
        of: dict[str, str] = {}
        for entity, label in zip(entities, self.labels, strict=True):
            if of.setdefault(entity, label) != label:
                raise ProbeError(
                    f"{entity!r} is {of[entity]!r} and {label!r}: an entity has one label, or the "
                    "control task, which gives each entity a label at random, is no control. "
                    "Without entities= equal prompts are one."
                )

    @classmethod
    def of_task(cls, task: Task | str, modality: Modality = "image", *, at_least: int = 5) -> Self:
        """A task's entities, each labelled with its answer.

        Args:
            task: `"animal-class"`, or a Task.
            modality: Whether each is shown, named or described.
            at_least: Answers that fewer entities have are left out.

        Raises:
            ProbeError: Fewer than two answers are left.
        """
        task = Task.load(task) if isinstance(task, str) else task
        rows = [row for row in task if modality != "image" or row.image is not None]
        counts = Counter(row.answers[0] for row in rows)
        kept = [row for row in rows if counts[row.answers[0]] >= at_least]
        if len({row.answers[0] for row in kept}) < 2:
            raise ProbeError(
                f"{task.name} has fewer than two answers that {at_least} entities share."
            )
        return cls(
            tuple(task.query(row, modality) for row in kept),
            tuple(row.answers[0] for row in kept),
            tuple(row.input for row in kept),
            task.name,
        )

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def majority(self) -> float:
        """The share of the most frequent label: what knowing nothing gives."""
        return max(Counter(self.labels).values()) / len(self)

    def text_only(self) -> list[RawPrompt]:
        """The same prompts without their pictures.

        Raises:
            ProbeError: Prompts that were made already, whose pictures cannot be left out.
        """
        texts = [getattr(p, "text", p) for p in self.prompts]
        if not all(isinstance(text, str) for text in texts):
            raise ProbeError("The text-only baseline needs texts or RawPrompts.")
        return [RawPrompt(text.replace(IMAGE, "")) for text in texts]

    @property
    def shows_pictures(self) -> bool:
        """Whether any prompt has a picture."""
        return any(getattr(p, "images", None) for p in self.prompts)


def _by_content(prompts: Sequence[Any]) -> tuple[str, ...]:
    """Names of prompts, the same for equal text and pictures: a state seen is no state held out."""
    first: dict[Any, int] = {}
    keys = [p if isinstance(p, str | RawPrompt) else id(p) for p in prompts]
    return tuple(f"prompt {first.setdefault(key, i)}" for i, key in enumerate(keys))


def as_set(examples: ProbeSet | Task | str | Sequence[Any]) -> ProbeSet:
    """A set, a task's entities, or (prompt, label, entity) rows, as a set."""
    if isinstance(examples, ProbeSet):
        return examples
    if isinstance(examples, Task | str):
        return ProbeSet.of_task(examples)
    rows = list(examples)
    if not rows or any(len(row) != 3 for row in rows):
        raise ProbeError("Give a ProbeSet, a task, or rows of (prompt, label, entity).")
    return ProbeSet(*map(tuple, zip(*rows, strict=True)))


__all__ = ["ProbeError", "ProbeSet", "as_set"]
