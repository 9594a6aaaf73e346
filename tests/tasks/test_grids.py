"""Drawn pictures hold what their rows say, where they say it."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from vlm_lens import HookedVLM
from vlm_lens.tasks import GRID_TASKS, Row, Scene, Task, TaskError, draw_scene, grid_rows
from vlm_lens.tasks.grids import GRAY, SHAPES
from vlm_lens.tasks.palette import BACKGROUND, COLORS, cell_name, cell_names


def boxes_of(image: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """Where a picture has exactly a color, `[height, width]`."""
    return (np.asarray(image) == color).all(-1)


def cells_with(image: Image.Image, color: tuple[int, int, int], side: int = 4) -> list[str]:
    """The cells that hold some of a color."""
    there, step = boxes_of(image, color), image.width // side
    return [
        cell_name(row, col)
        for row in range(side)
        for col in range(side)
        if there[row * step : (row + 1) * step, col * step : (col + 1) * step].any()
    ]


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return {name.removeprefix("grid-"): Task.load(name) for name in GRID_TASKS}


def test_cell_names_are_a_spreadsheets() -> None:
    assert cell_names(2) == ("a1", "b1", "a2", "b2")
    assert cell_name(25, 25) == "z26"


def test_tasks_ask_about_the_same_pictures(tasks) -> None:
    for one in tasks.values():
        assert (len(one.validation), len(one.test), one.domain) == (30, 100, "grid")
        for split in ("validation", "test"):
            for row, other in zip(one.rows(split), tasks["color"].rows(split), strict=True):
                assert row.input == other.input and row.picture is other.picture
    assert Task.load("grid-color") is tasks["color"]


def test_every_picture_holds_what_its_answers_say(tasks) -> None:
    for color, shape, position, count in zip(*(t.validation for t in tasks.values()), strict=True):
        image = color.image
        assert image.size == (224, 224)
        assert cells_with(image, COLORS[color.output]) == [position.output]
        others = set(COLORS) - {color.output}
        assert not any(boxes_of(image, COLORS[other]).any() for other in others)
        gray = cells_with(image, GRAY)
        assert count.answers[1] == str(len(gray))
        assert color.input.startswith(f"a {color.output} {shape.output} in {position.output} and ")
        assert color.input.endswith(f"in {', '.join(gray)}")
        assert color.boxes == shape.boxes == position.boxes != count.boxes
        ((x0, y0, x1, y1),) = color.boxes
        there = boxes_of(image, COLORS[color.output])
        assert there[y0:y1, x0:x1].sum() == there.sum()
        mask = np.zeros_like(there)
        for x0, y0, x1, y1 in count.boxes:
            mask[y0:y1, x0:x1] = True
        assert (boxes_of(image, GRAY) & ~mask).sum() == 0 and len(count.boxes) == len(gray)


def test_answers_are_spread(tasks) -> None:
    for name, least in (("color", 8), ("shape", 6), ("position", 16), ("count", 6)):
        counts = Counter(row.output for row in tasks[name])
        assert len(counts) == least and max(counts.values()) < 3 * 130 / least


def test_shapes_can_be_told_apart() -> None:
    drawn = {s: boxes_of(draw_scene(Scene("red", s, "b3")), COLORS["red"]) for s in SHAPES}
    for a, b in combinations(SHAPES, 2):
        assert (drawn[a] ^ drawn[b]).sum() > 0.1 * 56 * 56, (a, b)
    for shape, there in drawn.items():  # a third of the cell, for toy-induction
        assert there.sum() > 0.33 * 56 * 56, shape


def test_same_seed_same_rows_and_another_another() -> None:
    assert grid_rows("shape", seed=3, validation=2, test=3) == grid_rows(
        "shape", seed=3, validation=2, test=3
    )
    words = [
        [row.input for row in grid_rows("shape", seed=seed, validation=0, test=9)[1]]
        for seed in (0, 1)
    ]
    assert words[0] != words[1]
    assert words[0] == [row.input for row in Task.load("grid-shape")][:9]


def test_settings() -> None:
    _, rows = grid_rows("count", validation=0, test=4, side=6, gray=(0, 0), size=100, seed=1)
    task = Task.from_rows("n", rows, instruction="The number:", validation=1)
    for row in task:
        assert row.answers == ("zero", "0") and not row.boxes and row.image.size == (100, 100)
        assert " and " not in row.input
    _, rows = grid_rows("position", validation=0, test=4, side=6, size=100)
    for row in rows:
        x0, y0, x1, y1 = row.boxes[0]
        there = ~(boxes_of(row.image, BACKGROUND) | boxes_of(row.image, GRAY))
        assert there[y0:y1, x0:x1].sum() == there.sum() > 0
    single = grid_rows("color", validation=0, test=1, gray=(1, 1))[1][0]
    assert " and gray shape in " in single.input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attribute": "size"}, "attribute is one of"),
        ({"side": 1}, "side is 1"),
        ({"gray": (3, 2)}, "gray is"),
        ({"gray": (0, 7)}, "gray is"),
        ({"side": 2, "gray": (0, 4)}, "leave a cell free"),
        ({"size": 31}, "size is 31; 4 cells need 32 pixels"),
        ({"validation": 0, "test": 0}, "make no rows"),
        ({"side": 2, "gray": (0, 0), "test": 500}, "there are not 530 different pictures"),
    ],
)
def test_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        grid_rows(**{"attribute": "color", **settings})


def test_patches_of_a_row_on_a_model(tasks) -> None:
    """The patches are those that change when the cell is painted over."""
    vlm = HookedVLM.from_pretrained("toy-llava")
    for name in ("color", "count"):
        row = tasks[name].test[3]
        prompt = vlm.prompt(tasks[name].query(row, "image"))
        painted = row.image.copy()
        for x0, y0, x1, y1 in row.boxes:
            painted.paste((200, 50, 90), (int(x0) + 12, int(y0) + 12, int(x1) - 12, int(y1) - 12))
        both = vlm.prompt(["<image>", "<image>"], images=[[row.image], [painted]])
        _, cache = vlm.run_with_cache(both, names_filter="vision.hook_embed")
        before, after = cache["vision.hook_embed"][:, 1:]
        changed = (before != after).any(-1).nonzero().flatten().tolist()
        positions = prompt.layout.image[0].positions
        assert row.patches(prompt.layout) == [positions[i] for i in changed]


def test_patches_that_are_not_known() -> None:
    with pytest.raises(TaskError, match="not known which part of the picture of 'x'"):
        Row("x", "y").patches(None)


def test_toy_induction_does_the_color_task(tasks) -> None:
    """It was made to see one colored cell; the gray shapes do not disturb it."""
    vlm, task = HookedVLM.from_pretrained("toy-induction"), tasks["color"]
    rows = list(task)
    prompts = [task.query(row, "image") for row in rows]
    said = vlm.run(prompts)[:, -1].argmax(-1)
    assert vlm.tokenizer.convert_ids_to_tokens(said) == [row.output for row in rows]
