"""Pairs from the grid tasks: one picture, and the same with one object changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.pairs.pair import Pair, PairError
from vlm_lens.pairs.pairs import Pairs
from vlm_lens.tasks.grids import SHAPES, Attribute, Scene, check_grid, draw_scene, scenes
from vlm_lens.tasks.palette import COLORS, cell_names


def grid_pairs(
    vlm: HookedModel,
    attribute: Attribute = "color",
    n: int = 20,
    *,
    question: str = "Q:<image>{cell}\nA:",
    side: int = 4,
    gray: tuple[int, int] = (1, 6),
    size: int = 224,
    seed: int = 0,
) -> Pairs:
    """Draws pictures of shapes in cells, and each once more with one shape changed.

    The colored shape has another color or shape, or stands in another cell that was free; for
    `"count"` one gray shape is gone. Everything else is equal pixel for pixel, so `pair.changed`
    are the patches on which the difference depends, and a method can be scored.

    Args:
        vlm: The model.
        attribute: What is asked and changed: `"color"`, `"shape"`, `"position"` or `"count"`.
        n: How many pairs.
        question: The prompt; `{cell}`, `{color}` and `{shape}` are those of the clean picture.
        side: Cells from left to right, and from top to bottom.
        gray: The least and the largest number of gray shapes.
        size: Width and height of the pictures, in pixels.
        seed: The seed of everything that is drawn by lot.

    Raises:
        PairError: No such attribute, or a question that names what is changed.
        MeasureError: The model cannot tell the answers of a pair apart by their first token.
        TaskError: A setting is out of its range.
    """
    if attribute not in _CHANGES:
        raise PairError(f"attribute is one of {tuple(_CHANGES)}, not {attribute!r}.")
    told = {"position": "{cell}"}.get(attribute, f"{{{attribute}}}")
    if told in question:
        raise PairError(f"The question {question!r} names {told}, which is what is asked.")
    check_grid(side, gray, size)
    if attribute == "count":
        gray = max(gray[0], 1), gray[1]
    generator = np.random.default_rng(seed)
    made = []
    for scene in scenes(n, side, gray, seed):
        other = _CHANGES[attribute](scene, generator)
        text = question.format(cell=scene.cell, color=scene.color, shape=scene.shape)
        pictures = [draw_scene(one, size) for one in (scene, other)]
        answers = [
            one.row(attribute, picture).output
            for one, picture in zip((scene, other), pictures, strict=True)
        ]
        clean, corrupt = (vlm.as_prompt(text, [picture]) for picture in pictures)
        differs = f"{attribute} {answers[0]} -> {answers[1]}"
        made.append(Pair(clean, corrupt, answers[0], answers[1], differs=differs))
    return Pairs(tuple(made), f"grid-{attribute}", seed).check(vlm)


def _other(generator: np.random.Generator, known: tuple[str, ...], but: set[str]) -> str:
    left = [one for one in known if one not in but]
    return left[generator.integers(len(left))]


def _another_cell(scene: Scene, generator: np.random.Generator) -> Scene:
    taken = {scene.cell, *(cell for cell, _ in scene.gray)}
    cells = cell_names(scene.side)
    if len(taken) == len(cells):
        raise PairError("No cell of the picture is free: draw fewer gray shapes, gray=(1, 2).")
    return replace(scene, cell=_other(generator, tuple(cells), taken))


def _one_gray_less(scene: Scene, generator: np.random.Generator) -> Scene:
    gone = generator.integers(len(scene.gray))
    return replace(scene, gray=scene.gray[:gone] + scene.gray[gone + 1 :])


_CHANGES = {
    "color": lambda s, g: replace(s, color=_other(g, tuple(COLORS), {s.color})),
    "shape": lambda s, g: replace(s, shape=_other(g, SHAPES, {s.shape})),
    "position": _another_cell,
    "count": _one_gray_less,
}
