"""Pictures for toy-induction, and what it must say of them, computed from its definition."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from vlm_lens import HookedVLM, Prompt
from vlm_lens.tasks import Task, grid_rows
from vlm_lens.zoo.induction import DEFAULT, SCALE

RGB = {
    "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0),
    "cyan": (0, 255, 255), "magenta": (255, 0, 255), "white": (255, 255, 255), "black": (0, 0, 0),
    "gray": (128, 128, 128),
}  # fmt: skip
NAMES = [f"{col}{row}" for row in "1234" for col in "abcd"]
HEADS = [(layer, head) for layer in range(3) for head in range(3)]
COPY = "Q:b3\nA:red\n\nQ:c1\nA:blue\n\nQ:b3\nA:"


def drawn(colors: dict[str, str], side: int = 224) -> Image.Image:
    """A picture in which some cells hold a square of a color."""
    image = Image.new("RGB", (side, side), RGB["gray"])
    draw, step, edge = ImageDraw.Draw(image), side // 4, side // 40
    for name, color in colors.items():
        x, y = "abcd".index(name[0]) * step, (int(name[1]) - 1) * step
        box = (x + edge, y + edge, x + step - edge - 1, y + step - edge - 1)
        draw.rectangle(box, fill=RGB[color])
    return image


def full(shift: int) -> dict[str, str]:
    """A color for each cell; with another shift each cell has another color."""
    colors = list(RGB)
    return {name: colors[(i + shift) % 9] for i, name in enumerate(NAMES)}


HERE, THERE = full(0)["b3"], full(1)["b3"]


@cache
def model() -> HookedVLM:
    """toy-induction."""
    return HookedVLM.from_pretrained("toy-induction")


@cache
def asked(shift: int) -> Prompt:
    """What stands at b3? `HERE` with shift 0, `THERE` with shift 1."""
    return model().prompt("Q:<image>b3\nA:", images=[drawn(full(shift))])


@cache
def token_list() -> list[str]:
    """All tokens, by id."""
    return model().tokenizer.convert_ids_to_tokens(range(len(model().tokenizer)))


def top(vlm: HookedVLM, logits: Tensor) -> list[str]:
    """The most likely token at each last position."""
    return [vlm.tokenizer.convert_ids_to_tokens(i) for i in logits[:, -1].argmax(-1).tolist()]


def chirps(tokens: list[str]) -> np.ndarray:
    """The codes by their definition, in complex numbers, `[tokens, 23]`."""
    first = ["<image>", *NAMES, "<s>", "</s>", "<pad>", "<unk>", "Q", "A"]
    first += [c for c in RGB if c != "gray"] + ["gray"]
    order = first + [t for t in tokens if t not in first]
    a, b = np.divmod([order.index(t) for t in tokens], 23)
    n = np.arange(23)
    return np.exp(2j * np.pi / 23 * (np.outer(a, n * n) + np.outer(b, n))) / np.sqrt(23)


def expected(tokens: list[str], word: str | None) -> np.ndarray:
    """Logits where OUT holds a word, or nothing."""
    codes = chirps(tokens)
    logits = np.zeros(len(tokens))
    if word is not None:
        logits = SCALE * (codes @ codes[tokens.index(word)].conj()).real
    logits[tokens.index("</s>")] += DEFAULT
    return logits


@cache
def grid_task() -> Task:
    """`grid-color` with the cell that is asked about first in the name: ask="{input:.2}"."""

    def by_cell(rows, tag):
        cells = [row.input.split(" in ")[1][:2] for row in rows]
        return tuple(
            replace(row, input=f"{cell} of {tag} {n}")
            for n, (row, cell) in enumerate(zip(rows, cells, strict=True))
        )

    validation, test = grid_rows("color", validation=20, test=40)
    return Task(
        "grid-cells", "The color:", by_cell(validation, "validation"), by_cell(test, "test")
    )
