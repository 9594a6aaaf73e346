"""Pictures of a grid of cells, drawn without any data, whose answer is known to hang on a patch.

One shape is colored, and one to six others are gray. What is asked is the color, the shape or the
cell of the colored one, or the number of the gray ones, all of the same pictures. Each row knows
the boxes of pixels that its answer depends on (`Row.boxes`, `Row.patches`), so that a method that
says where an answer comes from can be scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

from vlm_lens.tasks.palette import BACKGROUND, COLORS, cell_names
from vlm_lens.tasks.rows import Row, TaskError

__all__ = [
    "SHAPES",
    "Attribute",
    "Scene",
    "check_grid",
    "draw_scene",
    "grid_rows",
    "rows",
    "scenes",
]

Attribute = Literal["color", "shape", "position", "count"]
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
GRAY = (96, 96, 96)  # darker than the background, but nearer to it than to any color
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
_MARGIN = 0.08  # of a cell, around a shape


@dataclass(frozen=True)
class Scene:
    """What is in a picture.

    Attributes:
        color: The color of the shape that is not gray, one of `COLORS`.
        shape: Its shape, one of `SHAPES`.
        cell: Its cell, such as `"b3"`.
        gray: The gray shapes: pairs of cell and shape, in the order of the cells.
        side: Cells from left to right, and from top to bottom.
    """

    color: str
    shape: str
    cell: str
    gray: tuple[tuple[str, str], ...] = ()
    side: int = 4

    @property
    def words(self) -> str:
        """The scene in words: its text form."""
        one = len(self.gray) == 1
        beside = f" and gray shape{'' if one else 's'} in {', '.join(c for c, _ in self.gray)}"
        return f"a {self.color} {self.shape} in {self.cell}{beside if self.gray else ''}"

    def box(self, cell: str, size: int) -> tuple[int, int, int, int]:
        """The pixels of a cell.

        Args:
            cell: Its name.
            size: Width and height of the picture.
        """
        row, col = divmod(cell_names(self.side).index(cell), self.side)
        edges = [round(i * size / self.side) for i in range(self.side + 1)]
        return edges[col], edges[row], edges[col + 1], edges[row + 1]

    def row(self, attribute: Attribute, picture: Image.Image) -> Row:
        """The scene as a row of a task.

        Args:
            attribute: What is asked.
            picture: The scene, drawn.
        """
        answers = {
            "color": (self.color,),
            "shape": (self.shape,),
            "position": (self.cell,),
            "count": (_NUMBERS[len(self.gray)], str(len(self.gray))),
        }[attribute]
        cells = [c for c, _ in self.gray] if attribute == "count" else [self.cell]
        boxes = tuple(self.box(cell, picture.width) for cell in cells)
        return Row(self.words, answers[0], answers[1:], picture, boxes=boxes)


def draw_scene(scene: Scene, size: int = 224) -> Image.Image:
    """Draw a scene.

    Args:
        scene: What is in the picture.
        size: Width and height, in pixels.

    Returns:
        The picture.
    """
    image = Image.new("RGB", (size, size), BACKGROUND)
    draw = ImageDraw.Draw(image)
    _draw_shape(draw, scene.shape, scene.box(scene.cell, size), COLORS[scene.color])
    for cell, shape in scene.gray:
        _draw_shape(draw, shape, scene.box(cell, size), GRAY)
    return image


def grid_rows(
    attribute: Attribute,
    *,
    validation: int = 30,
    test: int = 100,
    side: int = 4,
    gray: tuple[int, int] = (1, 6),
    size: int = 224,
    seed: int = 0,
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Draw the rows of a task.

    Two attributes with the same other settings ask about the same pictures. Give the rows to
    `Task.from_rows`, or take `Task.load("grid-color")` and the like, which have these settings.

    Args:
        attribute: What is asked: `"color"`, `"shape"`, `"position"` or `"count"`.
        validation: Rows for validation.
        test: Rows for test.
        side: Cells from left to right, and from top to bottom, 2 to 26.
        gray: The least and the largest number of gray shapes, 0 to 6.
        size: Width and height of the pictures, in pixels, at least 8 a cell.
        seed: The seed of everything that is drawn by lot.

    Returns:
        The validation rows and the test rows.

    Raises:
        TaskError: A setting is out of its range.
    """
    if attribute not in get_args(Attribute):
        raise TaskError(f"attribute is one of {get_args(Attribute)}, not {attribute!r}")
    check_grid(side, gray, size)
    if validation < 0 or test < 0 or not validation + test:
        raise TaskError(f"validation={validation} and test={test} make no rows")
    found = scenes(validation + test, side, gray, seed)
    drawn = [scene.row(attribute, _picture(scene, size)) for scene in found]
    return tuple(drawn[:validation]), tuple(drawn[validation:])


def rows(name: str) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """The rows of `grid-color` and the like, in both splits.

    Args:
        name: The task's name.
    """
    return grid_rows(name.removeprefix("grid-"))


def check_grid(side: int, gray: tuple[int, int], size: int) -> None:
    """Refuses a grid that cannot be drawn.

    Args:
        side: Cells from left to right, and from top to bottom.
        gray: The least and the largest number of gray shapes.
        size: Width and height of the picture, in pixels.

    Raises:
        TaskError: A setting is out of its range.
    """
    if not 2 <= side <= 26:
        raise TaskError(f"side is {side}; a grid has 2 to 26 cells in a row")
    least, most = gray
    if not 0 <= least <= most <= min(len(_NUMBERS) - 1, side * side - 1):
        raise TaskError(f"gray is {gray}; give two numbers from 0 to 6 that leave a cell free")
    if size < 8 * side:
        raise TaskError(f"size is {size}; {side} cells need {8 * side} pixels or more")


def scenes(count: int, side: int, gray: tuple[int, int], seed: int) -> tuple[Scene, ...]:
    """Different scenes, drawn by lot.

    Args:
        count: How many.
        side: Cells from left to right, and from top to bottom.
        gray: The least and the largest number of gray shapes.
        seed: The seed.

    Raises:
        TaskError: There are not so many different ones.
    """
    generator = np.random.RandomState(seed)
    cells, colors = cell_names(side), tuple(COLORS)
    found: dict[str, Scene] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        number = generator.randint(gray[0], gray[1] + 1)
        places = [int(i) for i in generator.permutation(len(cells))[: number + 1]]
        shapes = [SHAPES[i] for i in generator.randint(len(SHAPES), size=number + 1)]
        others = sorted(zip(places[1:], shapes[1:], strict=True))
        scene = Scene(
            colors[generator.randint(len(colors))],
            shapes[0],
            cells[places[0]],
            tuple((cells[i], shape) for i, shape in others),
            side,
        )
        found.setdefault(scene.words, scene)
    else:
        raise TaskError(f"there are not {count} different pictures with these settings")
    return tuple(found.values())


@cache
def _picture(scene: Scene, size: int) -> Image.Image:
    return draw_scene(scene, size)


def _draw_shape(
    draw: ImageDraw.ImageDraw,
    shape: str,
    cell: tuple[int, int, int, int],
    color: tuple[int, int, int],
) -> None:
    edge = _MARGIN * (cell[2] - cell[0])
    x0, y0, x1, y1 = cell[0] + edge, cell[1] + edge, cell[2] - edge - 1, cell[3] - edge - 1
    x, y, third = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 3
    if shape == "circle":
        draw.ellipse((x0, y0, x1, y1), fill=color)
    elif shape == "square":
        draw.rectangle((x0, y0, x1, y1), fill=color)
    elif shape == "triangle":
        draw.polygon([(x, y0), (x1, y1), (x0, y1)], fill=color)
    elif shape == "diamond":
        draw.polygon([(x, y0), (x1, y), (x, y1), (x0, y)], fill=color)
    elif shape == "cross":
        draw.rectangle((x0, y0 + third, x1, y1 - third), fill=color)
        draw.rectangle((x0 + third, y0, x1 - third, y1), fill=color)
    else:  # a ring
        draw.ellipse((x0, y0, x1, y1), fill=color)
        inner = (x1 - x0) / 5
        draw.ellipse((x0 + inner, y0 + inner, x1 - inner, y1 - inner), fill=BACKGROUND)
