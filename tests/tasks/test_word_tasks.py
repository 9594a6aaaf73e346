"""Tasks of words alone: made by rule, without pictures."""

from __future__ import annotations

import pytest

from vlm_lens.tasks import WORD_TASKS, Task, TaskError


@pytest.mark.parametrize("name", WORD_TASKS)
def test_rows(name):
    task = Task.load(name)
    assert len(task.validation) == 30 and len(task.test) >= 30
    assert len({row.input for row in task}) == len(task)  # none twice, none in both splits
    assert task.instruction.endswith(":") and task.task_word
    assert all(row.input != row.output and row.picture is None for row in task)
    with pytest.raises(TaskError, match="has no picture"):
        task.query(task.test[0], "image")


def test_answers():
    assert Task.load("word-plural")["story"].output == "stories"
    assert Task.load("word-plural")["table"].output == "tables"
    assert Task.load("word-capitals")["house"].output == "HOUSE"
    assert Task.load("word-opposite")["hot"].output == "cold"
    assert Task.load("word-past")["go"].output == "went"
    prompt = Task.load("word-past").examples(1, seed=1, query="go").text
    assert prompt.endswith("Q:go\nA:") and prompt.count("Q:") == 2
