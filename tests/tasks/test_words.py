"""Words as pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageFont

from vlm_lens.tasks import Row, Task, TaskError, draw_words


def ink(image) -> np.ndarray:
    """Which pixels are dark, `[height, width]`."""
    return np.asarray(image.convert("L")) < 128


@pytest.mark.parametrize("text", ["Ant", "Bosnia and Herzegovina", "gypsum", "W", "."])
@pytest.mark.parametrize("size", [224, 64])
def test_words_fill_the_middle(text: str, size: int) -> None:
    image, (x0, y0, x1, y1) = draw_words(text, size=size)
    assert image.size == (size, size) and image.mode == "RGB"
    rows, cols = np.nonzero(ink(image))
    assert x0 <= cols.min() and cols.max() < x1 and y0 <= rows.min() and rows.max() < y1
    assert abs((x0 + x1) - size) <= 2 + size // 50 and abs((y0 + y1) - size) <= 2 + size // 50
    assert min(x0, y0) >= 0.04 * size and max(x1, y1) <= 0.96 * size


def runs(there: np.ndarray) -> int:
    """How many stretches of ink there are along an axis."""
    return int(there[0]) + int((there[1:] & ~there[:-1]).sum())


def test_letters_and_lines_can_be_counted() -> None:
    for n in (1, 4, 9):
        mask = ink(draw_words("I" * n)[0])
        assert runs(mask.any(0)) == n and runs(mask.any(1)) == 1
    mask = ink(draw_words("HHHHHH HHHHHH")[0])
    assert (runs(mask.any(0)), runs(mask.any(1))) == (6, 2)


def test_other_words_other_pictures_and_the_same_again() -> None:
    assert draw_words("Peru") == draw_words("Peru")
    assert draw_words("Peru")[0] != draw_words("Perv")[0]


def test_a_task_as_words() -> None:
    task = Task.load("country-capital")
    words = task.as_words(size=100)
    assert words.name == "country-capital-words"
    assert [(r.input, r.answers) for r in words] == [(r.input, r.answers) for r in task]
    row = words["South Korea"]
    image, box = draw_words("South Korea", size=100)
    assert row.image == image and row.boxes == (box,)
    assert words.query("South Korea", "image").images == (image,)
    assert task["South Korea"].boxes == ()


def test_letters_without_a_font() -> None:
    with pytest.raises(TaskError, match="has no 'ã', which 'São Tomé'|has no 'ãé'"):
        draw_words("São Tomé")
    own = ImageFont.load_default(20)
    assert draw_words("São Tomé", font=own)[0].size == (224, 224)
    task = Task.from_rows("t", [Row("日本", "x")], instruction="x:", validation=0)
    with pytest.raises(TaskError, match="pass font="):
        task.as_words()


def test_no_words_and_no_room() -> None:
    with pytest.raises(TaskError, match="no words to draw"):
        draw_words(" ")
    with pytest.raises(TaskError, match="does not fit into 40 x 40"):
        draw_words("a very long sentence that goes on " * 40, size=40)
