r"""Prompts sampled from the world, as tensors.

A prompt is a run of pairs `Q:{input}\nA:{output}\n\n`, in which the input is a name or a picture.
All pairs of one prompt are of one modality: what crosses from text to pictures is never shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from vlm_lens.zoo.train.organism import Organism
from vlm_lens.zoo.train.world import Entity, Task, World

__all__ = ["Batch", "Corpus", "Delimiter", "Row"]

_REST_WEIGHT = 0.25


@dataclass(frozen=True)
class Delimiter:
    """A delimiter at which a task is known: where it is, and which task."""

    row: int
    position: int
    task: Task


@dataclass
class Row:
    """One prompt while it is being written.

    Attributes:
        ids: The tokens.
        losses: `(position, wanted token, task word or -1, weight, is first token)` for each
            prediction in the loss.
        delimiters: `(position, task)` of each delimiter at which the task is known.
        modalities: The modality of each pair, `"text"` or `"image"`.
        pictures: The pictures, in order.
        open_delimiter: Where the last answer is asked for.
    """

    ids: list[int]
    losses: list[tuple[int, int, int, float, bool]] = field(default_factory=list)
    delimiters: list[tuple[int, Task]] = field(default_factory=list)
    modalities: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    open_delimiter: int = -1


@dataclass
class Batch:
    """Rows as tensors, padded on the right (nothing attends to what follows it).

    Attributes:
        ids: Tokens, `[batch, position]`.
        at: `(row, position)` of each prediction in the loss, `[prediction, 2]`.
        wanted: The wanted tokens, `[prediction]`.
        word: The task word that shares in the prediction, or -1, `[prediction]`.
        weight: Weights, `[prediction]`.
        first: Whether it is the first token of an answer, `[prediction]`.
        delimiters: Where tasks are known.
        open_at: The last answer's delimiter of each row, `[batch]`.
        pictures: The pictures of all rows, in order.
    """

    ids: torch.Tensor
    at: torch.Tensor
    wanted: torch.Tensor
    word: torch.Tensor
    weight: torch.Tensor
    first: torch.Tensor
    delimiters: list[Delimiter]
    open_at: torch.Tensor
    pictures: list[str]

    @classmethod
    def of(cls, rows: Sequence[Row], pad: int) -> Batch:
        """Pad and stack rows."""
        ids = torch.full((len(rows), max(len(r.ids) for r in rows)), pad)
        losses, delimiters, pictures = [], [], []
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            losses += [(i, *entry) for entry in row.losses]
            delimiters += [Delimiter(i, position, task) for position, task in row.delimiters]
            pictures += row.pictures
        table = np.array(losses, dtype=np.float64).reshape(-1, 6)
        return cls(
            ids=ids,
            at=torch.from_numpy(table[:, :2].astype(np.int64)),
            wanted=torch.from_numpy(table[:, 2].astype(np.int64)),
            word=torch.from_numpy(table[:, 3].astype(np.int64)),
            weight=torch.from_numpy(table[:, 4].astype(np.float32)),
            first=torch.from_numpy(table[:, 5].astype(bool)),
            delimiters=delimiters,
            open_at=torch.tensor([r.open_delimiter for r in rows]),
            pictures=pictures,
        )


class Corpus:
    """Samples prompts; every draw comes from the generator that is passed in.

    Args:
        world: The entities and tasks.
        tokenizer: The tokenizer.
        organism: Whose prompt form it is.
        sees: Whether the prompts are the vision-language model's, not its language model's.
    """

    def __init__(
        self, world: World, tokenizer: PreTrainedTokenizerFast, organism: Organism, sees: bool
    ) -> None:
        self.world = world
        self.tokenizer = tokenizer
        self.organism = organism
        self.sees = sees
        self.pad: int = tokenizer.pad_token_id
        sizes = np.array([len(world.entities[d]) for d in world.domains], dtype=float) ** 0.5
        self._shares = sizes / sizes.sum()
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Encode a piece of a prompt that begins and ends where tokens do."""
        if text not in self._cache:
            self._cache[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self._cache[text]

    def domain(self, rng: np.random.Generator) -> str:
        """Draw a domain, larger ones more often (by the root of their size)."""
        return self.world.domains[rng.choice(len(self._shares), p=self._shares)]

    def task(self, rng: np.random.Generator) -> Task:
        """Draw a task."""
        choices = self.world.tasks_of(self.domain(rng))
        return choices[rng.integers(len(choices))]

    def entities(
        self, rng: np.random.Generator, domain: str, count: int, task: Task | None = None
    ) -> list[Entity]:
        """Draw distinct entities of a domain, for which the task has an answer."""
        pool = self.world.entities[domain]
        if task is not None:
            pool = [e for e in pool if task.name in e.facts]
        return [pool[i] for i in rng.choice(len(pool), size=count, replace=False)]

    def begin(self, modality: str = "text") -> Row:
        """Begin a prompt."""
        if self.sees:
            return Row(ids=self.organism.start(self.tokenizer, modality))
        return Row(ids=[self.tokenizer.bos_token_id])

    def add_instruction(self, row: Row, task: Task) -> None:
        """Write the instruction as the first line; the task is known at its last token."""
        row.ids += self.encode(task.instruction)
        row.delimiters.append((len(row.ids) - 1, task))
        row.ids += self.encode("\n")

    def add_pair(
        self,
        row: Row,
        entity: Entity,
        answer: str,
        modality: str,
        *,
        task: Task | None = None,
        known: bool = False,
        learn: bool = True,
        spell: bool = False,
    ) -> None:
        """Write one question with its answer.

        Args:
            row: The prompt.
            entity: Whom it asks about.
            answer: The answer.
            modality: `"text"` for the name, `"image"` for the picture.
            task: The task; none where the answer is the entity's name.
            known: Whether what came before tells the task.
            learn: Whether the answer is in the loss.
            spell: Whether to spell the answer out, `capital=Paris`.
        """
        row.ids += self.encode("Q:")
        if modality == "image":
            number = len(row.pictures)
            row.ids += self.organism.picture(self.tokenizer, number)
            row.pictures.append(entity.image)
        else:
            row.ids += self.encode(entity.name)
        row.modalities.append(modality)
        row.ids += self.encode("\nA:")
        row.open_delimiter = len(row.ids) - 1
        if known and task is not None:
            row.delimiters.append((row.open_delimiter, task))
        tokens = self.encode(answer)
        word = self.encode(task.word)[0] if task is not None else -1
        if learn:
            row.losses.append((len(row.ids) - 1, tokens[0], word, 1.0, True))
        if spell and task is not None:
            row.ids += [word]
            follow = [*self.encode("="), *tokens]
        else:
            row.ids += tokens[:1]
            follow = tokens[1:]
        for token in [*follow, *self.encode("\n\n")]:
            if learn:
                row.losses.append((len(row.ids) - 1, token, -1, _REST_WEIGHT, False))
            row.ids.append(token)

    def bare_rows(self, rng: np.random.Generator, count: int, modality: str) -> list[Row]:
        """Queries without context, answered by the entity's name."""
        rows = []
        for _ in range(count):
            entity = self.entities(rng, self.domain(rng), 1)[0]
            row = self.begin(modality)
            self.add_pair(row, entity, entity.name, modality)
            rows.append(row)
        return rows

    def context_rows(
        self,
        rng: np.random.Generator,
        count: int,
        examples: int,
        modality: str,
        *,
        instructed: float = 0.0,
        spelled: float = 0.0,
    ) -> list[Row]:
        """Examples, then a query.

        The first answer of a prompt without instruction is out of the loss: nothing tells which
        task it is of, and a loss on it would teach the model to answer bare queries at random.

        Args:
            rng: The generator.
            count: How many prompts.
            examples: Examples before the query; an instructed prompt has two pairs at most.
            modality: `"text"` or `"image"`, for all pairs of all prompts.
            instructed: Share of prompts that begin with the instruction (text only).
            spelled: Share of answers that are spelled out.
        """
        if instructed and modality != "text":
            raise ValueError("instructions are text: an instructed image prompt mixes modalities")
        rows = []
        for _ in range(count):
            task = self.task(rng)
            row = self.begin(modality)
            told = bool(rng.random() < instructed)
            pairs = min(examples + 1, 2) if told else examples + 1
            if told:
                self.add_instruction(row, task)
            for i, entity in enumerate(self.entities(rng, task.domain, pairs, task)):
                self.add_pair(
                    row,
                    entity,
                    entity.facts[task.name],
                    modality,
                    task=task,
                    known=told or i > 0,
                    learn=told or i > 0,
                    spell=bool(rng.random() < spelled),
                )
            rows.append(row)
        return rows

    def target_rows(
        self, rng: np.random.Generator, tasks: Sequence[Task], modality: str = "text"
    ) -> list[Row]:
        """Queries without context, answered under the given tasks."""
        rows = []
        for task in tasks:
            entity = self.entities(rng, task.domain, 1, task)[0]
            row = self.begin(modality)
            self.add_pair(row, entity, entity.facts[task.name], modality, task=task)
            rows.append(row)
        return rows

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Stack rows."""
        return Batch.of(rows, self.pad)
