"""What the shipped dictionaries are trained on: pictures of the tasks' tables, and their names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance

from vlm_lens.prompts.template import QUESTION_ANSWER, RawPrompt
from vlm_lens.tasks import EXTRA_TASKS, PAPER_TASKS, Task

__all__ = ["Entities", "augmented", "entities", "training_prompts"]

Entities = dict[str, tuple[Image.Image, dict[str, str]]]  # name -> picture, attribute -> value


def entities() -> Entities:
    """Every entity that has a picture, with what the tables say of it.

    An attribute is a task (`"food-color"`), or `"domain"`: country, animal or food.
    """
    pictures: dict[str, Image.Image] = {}
    facts: dict[str, dict[str, str]] = defaultdict(dict)
    for name in (*PAPER_TASKS, *EXTRA_TASKS):
        for row in Task.load(name):
            if row.image is None:
                continue
            pictures.setdefault(row.input, row.image.convert("RGB"))
            facts[row.input] |= {name: row.answers[0], "domain": name.split("-")[0]}
    return {name: (picture, facts[name]) for name, picture in pictures.items()}


def augmented(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
    """A picture shifted, scaled, turned a little, and brighter or darker; never mirrored."""
    width, height = picture.size
    scale, dx, dy = draw.uniform(0.85, 1.2), *draw.uniform(-0.12, 0.12, 2)
    cut = width / scale, height / scale
    left = (width - cut[0]) / 2 + dx * width
    top = (height - cut[1]) / 2 + dy * height
    turned = picture.rotate(
        draw.uniform(-8, 8), Image.Resampling.BICUBIC, fillcolor=picture.getpixel((0, 0))
    )
    box = (round(left), round(top), round(left + cut[0]), round(top + cut[1]))
    ground = Image.new("RGB", (box[2] - box[0], box[3] - box[1]), picture.getpixel((0, 0)))
    ground.paste(turned, (-box[0], -box[1]))
    shown = ground.resize((width, height), Image.Resampling.BICUBIC)
    return ImageEnhance.Brightness(shown).enhance(draw.uniform(0.8, 1.2))


def training_prompts(known: Entities, *, copies: int, seed: int = 0) -> list[RawPrompt]:
    r"""Bare queries `Q:<image>\nA:` of augmented pictures and of names, and examples.

    Args:
        known: The entities.
        copies: Augmented pictures of each.
        seed: Of what is drawn.
    """
    draw = np.random.default_rng(seed)
    prompts = [
        QUESTION_ANSWER.build((), augmented(picture, draw))
        for picture, _ in known.values()
        for _ in range(copies)
    ]
    prompts += [QUESTION_ANSWER.build((), name) for name in known]
    for task in map(Task.load, PAPER_TASKS):
        for modality in ("text", "image"):
            prompts += [task.examples(2, modality, seed=s) for s in range(8)]
    return prompts


def queries(known: Entities, names: Sequence[str]) -> list[RawPrompt]:
    """The bare query of each entity's picture as it is."""
    return [QUESTION_ANSWER.build((), known[name][0]) for name in names]
