"""Words for what is in the pictures of a task."""

from __future__ import annotations

import pytest

from vlm_lens import Images, Patches
from vlm_lens.tasks import Task, TaskError
from vlm_lens.tasks.contents import contents
from vlm_lens.tasks.rows import Row


def test_patches_of_a_grid_hold_the_answer_and_other_pictures_what_they_are_called():
    row = Task.load("grid-color").test[0]
    (prompt, at, words), *_ = contents([row])
    assert at == Patches(0, box=row.boxes[0]) and words == row.answers
    assert prompt.text == "Q:<image>\nA:" and prompt.images[0].size == row.image.size
    row = Task.load("animal-young")["Cow"]
    assert contents([row])[0][1:] == (Images(), ("Cow",))


def test_an_answer_that_no_patch_holds_alone_is_refused():
    row = next(r for r in Task.load("grid-count").test if len(r.boxes) > 1)
    with pytest.raises(TaskError, match="no patch holds it alone"):
        contents([row])


def test_a_row_without_a_picture_is_refused():
    with pytest.raises(TaskError):
        contents([Row("a", "b")])
