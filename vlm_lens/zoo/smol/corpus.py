"""The sentences as rows of tokens, with the words that are learned."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_lens.zoo.smol.sentences import FACTS, NAMINGS, PICTURED, PORTRAITS
from vlm_lens.zoo.train.world import Entity, World

__all__ = ["IMAGE", "Rows", "encoded", "naming_rows", "sentence_rows"]

IMAGE = -1
_SLOT = re.compile(r"\{([^}]+)\}")


@dataclass
class Rows:
    """Rows of tokens, padded on the right, and what is learned of them.

    Attributes:
        ids: `[row, position]`; `IMAGE` where a picture's tokens stand.
        picture: Which picture each row shows, `[row]`; -1 where it shows none.
        at: Positions whose next token is learned, `[row, prediction]`.
        wanted: Those tokens, `[row, prediction]`.
        weight: What each counts; zero is padding, `[row, prediction]`.
    """

    ids: Tensor
    picture: Tensor
    at: Tensor
    wanted: Tensor
    weight: Tensor

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.ids)

    def __getitem__(self, index: Tensor) -> Rows:
        """Some of the rows."""
        return Rows(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def to(self, device: str | torch.device) -> Rows:
        """The same on a device."""
        return Rows(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    @classmethod
    def of(cls, rows: Iterable[tuple[list[int], list[float], int]], pad: int) -> Rows:
        """Pads and stacks `(ids, weight of each token as a target, picture)`."""
        rows = list(rows)
        length = max(len(ids) for ids, _, _ in rows)
        most = max(sum(w > 0 for w in weights[1:]) for _, weights, _ in rows)
        tokens = torch.full((len(rows), length), pad)
        at, wanted = (torch.zeros(len(rows), most, dtype=torch.long) for _ in range(2))
        weight = torch.zeros(len(rows), most)
        for i, (ids, weights, _) in enumerate(rows):
            tokens[i, : len(ids)] = torch.tensor(ids)
            learned = [k for k in range(1, len(ids)) if weights[k] > 0]
            for j, k in enumerate(learned):
                at[i, j], wanted[i, j], weight[i, j] = k - 1, ids[k], weights[k]
        return cls(tokens, torch.tensor([picture for *_, picture in rows]), at, wanted, weight)


def encoded(
    tokenizer: Any, text: str, slots: Mapping[str, str], image_tokens: int
) -> tuple[list[int], list[float]]:
    """The tokens of a wording with its slots filled, and which are learned.

    What fills a slot is learned, but for the first slot of a sentence without a picture, which
    nothing tells. The wording itself is not, nor what stands before a picture.

    Args:
        tokenizer: A tokenizer of the library tokenizers.
        text: The wording.
        slots: What fills it.
        image_tokens: How many tokens a picture has.
    """
    ids: list[int] = []
    weights: list[float] = []
    parts = text.split("<image>")
    told = len(parts) > 1
    for number, part in enumerate(parts):
        if number:
            weights = [0.0] * len(weights)
            ids += [IMAGE] * image_tokens
            weights += [0.0] * image_tokens
        filled, spans, start = "", [], 0
        for match in _SLOT.finditer(part):
            filled += part[start : match.start()]
            if told:
                spans.append((len(filled), len(filled) + len(slots[match[1]])))
            told = True
            filled += slots[match[1]]
            start = match.end()
        filled += part[start:]
        found = tokenizer.encode(filled, add_special_tokens=False)
        ids += found.ids
        weights += [
            float(any(a < end and begin < b for begin, end in spans)) for a, b in found.offsets
        ]
    return ids, weights


def naming_rows(
    world: World,
    tokenizer: Any,
    pictures: Mapping[str, int],
    image_tokens: int,
    *,
    captions: bool,
    pictured: bool,
) -> tuple[list, list]:
    """Rows that name a picture, and rows that say more of it.

    Args:
        world: The entities.
        tokenizer: Their tokenizer.
        pictures: The number of each picture.
        image_tokens: How many tokens a picture has.
        captions: Whether a naming may be followed by a sentence about what was named.
        pictured: Whether facts are also asked of pictures without a name.
    """
    plain, more = [], []
    for domain, entities in world.entities.items():
        for entity in entities:
            picture = pictures[entity.image]
            tasks = [task.name for task in world.tasks_of(domain)]
            for k, wording in enumerate(NAMINGS[domain]):
                ids, weights = encoded(tokenizer, wording, {"N": entity.name}, image_tokens)
                plain.append((ids, weights, picture))
                if captions and wording.endswith("."):
                    task = tasks[k % len(tasks)]
                    follow = FACTS[task][(k * 7) % len(FACTS[task])]
                    slots = {"N": _in_sentence(entity), "A": entity.facts.get(task, "")}
                    if slots["A"]:
                        text = f"{wording} {follow}"
                        ids, weights = encoded(tokenizer, text, slots, image_tokens)
                        more.append((ids, weights, picture))
            if pictured:
                for task in tasks:
                    for wording in PICTURED.get(task, ()):
                        slots = {"A": entity.facts.get(task, "")}
                        if slots["A"]:
                            ids, weights = encoded(tokenizer, wording, slots, image_tokens)
                            more.append((ids, weights, picture))
    return plain, more


def sentence_rows(world: World, tokenizer: Any) -> list:
    """Rows of facts in plain sentences."""
    rows = []
    for domain, entities in world.entities.items():
        for entity in entities:
            for name in _spellings(entity):
                for task in world.tasks_of(domain):
                    answer = entity.facts.get(task.name)
                    for wording in FACTS[task.name] if answer else ():
                        slots = {"N": name, "A": answer}
                        rows.append((*encoded(tokenizer, wording, slots, 0), -1))
                for wording in PORTRAITS[domain]:
                    if all(s == "N" or s in entity.facts for s in _SLOT.findall(wording)):
                        slots = {"N": name, **entity.facts}
                        rows.append((*encoded(tokenizer, wording, slots, 0), -1))
    return rows


def _spellings(entity: Entity) -> tuple[str, ...]:
    """The name as the tables have it, and in small letters where it is no country's."""
    return tuple(dict.fromkeys((entity.name, _in_sentence(entity))))


def _in_sentence(entity: Entity) -> str:
    return entity.name if entity.domain == "country" else entity.name.lower()
