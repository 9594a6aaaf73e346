"""Overriding, with answers generated again by plain transformers and plain torch hooks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from recipes.plain import Plain, small
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.recipes import RecipeError, Result
from vlm_lens.recipes import task_override as m
from vlm_lens.recipes.parts.judges import JudgeError, Wanted
from vlm_lens.recipes.parts.override_result import OverrideResult
from vlm_lens.recipes.task_override import OverrideItem, TaskOverride
from vlm_lens.terms import (
    INSTRUCTION_PATCH,
    INSTRUCTION_RANDOM,
    ORIGINAL_TASK,
    SYSTEM_PROMPT,
    WRONG_INSTRUCTION_PATCH,
)

TASKS = tuple(small(name, 4, 6) for name in ("food-color", "food-flavor", "food-kind"))
KNOWN = Wanted("b", ("d",))
PAIR = "food-color → food-flavor"


@pytest.fixture(scope="module")
def result(toy):
    recipe = TaskOverride(tasks=TASKS, original="instruction", layer=4, max_new_tokens=3)
    return recipe.run(toy, progress=False)


def test_answers_equal_plain_transformers(result):
    plain, (color, flavor, _) = Plain("toy-llava"), TASKS
    vector = plain.vector([flavor.instruction], nth=-1)[4]
    asked = f"{color.instruction}\nQ:<image>\nA:"
    expected = {ORIGINAL_TASK: [], SYSTEM_PROMPT: [], INSTRUCTION_PATCH: []}
    for row in color.test:
        expected[ORIGINAL_TASK].append(plain.generates(asked, [row.image]))
        system = f"{flavor.instruction}\n\n{asked}"
        expected[SYSTEM_PROMPT].append(plain.generates(system, [row.image]))
        patched = plain.generates(asked, [row.image], patch=(4, vector))
        expected[INSTRUCTION_PATCH].append(patched)
    answers = result.tables["predictions"].query("task == @PAIR")
    for method, texts in expected.items():
        assert answers[answers["method"] == method]["prediction"].tolist() == texts
    patched = [
        row.answers[0] in text
        for row, text in zip(flavor.test, expected[INSTRUCTION_PATCH], strict=True)
    ]
    share = result.table.query("task == @PAIR and method == @INSTRUCTION_PATCH")["strict"].item()
    assert share == pytest.approx(np.mean(patched))


def test_the_vector_overrides_and_the_controls_do_not(result):
    mean = result.table[result.table["task"] == "mean"].set_index("method")
    assert mean.loc[INSTRUCTION_PATCH, "accuracy"] > 0.5 > mean.loc[ORIGINAL_TASK, "accuracy"]
    for control in (WRONG_INSTRUCTION_PATCH, INSTRUCTION_RANDOM):
        assert mean.loc[control, "accuracy"] < mean.loc[INSTRUCTION_PATCH, "accuracy"] - 0.3
    verdicts = mean[[c for c in mean if c.startswith("judged_")]]
    np.testing.assert_allclose(verdicts.sum(axis=1), 1)
    np.testing.assert_allclose(
        mean["accuracy"], verdicts["judged_overriding"] + verdicts["judged_both"]
    )
    assert len(result.table["task"].unique()) == 7  # six ordered pairs and their mean


def test_the_paper_s_form_of_the_prompt(toy):
    recipe = TaskOverride(tasks=TASKS)
    item = recipe.used_items()[0]
    assert recipe.asked(item)[0] == "Q:<image>The color of the food?\nA:"
    named = TaskOverride(tasks=TASKS, query="text").used_items()[0]
    assert recipe.asked(named)[0] == f"Q:{named.given} The color of the food?\nA:"
    shown = TaskOverride(tasks=TASKS, original="examples").used_items()[0]
    assert shown.prompt.text.count("Q:") == 6 and shown.prompt.text.endswith("Q:<image>\nA:")


def test_the_layer_is_chosen_on_validation(toy):
    tasks = tuple(small(one.name, 6, 6) for one in TASKS[:2])
    paper = TaskOverride(tasks=tasks).paper().run(toy, progress=False)
    found = TaskOverride(tasks=tasks, max_new_tokens=1, controls=False).run(toy, progress=False)
    assert found.values["layer"] == paper.layer


def test_items_and_a_judge_of_ones_own(toy, tmp_path):
    row = TASKS[0].test[0]
    items = tuple(
        OverrideItem(given, Wanted("What is it?"), Wanted("The flavor descriptor of the food:"),
                     prompt, group)
        for given, prompt, group in (
            (row.image, None, "pictures"), (row.input, None, "names"),
            (row.input, RawPrompt("Q:a\nA:"), "names"))
    )  # fmt: skip
    seen = []

    def shouts(case):
        seen.append(case)
        return "both" if case.original.question == "What is it?" else "neither"

    recipe = TaskOverride(items=items, layer=3, judge=shouts, max_new_tokens=2)
    result = recipe.run(toy, progress=False)
    assert set(result.table["accuracy"]) == {1.0} and len(seen) == 3 * 4
    assert set(result.table["task"]) == {"pictures", "names", "mean"}
    assert WRONG_INSTRUCTION_PATCH not in set(
        result.table["method"]
    )  # there is one instruction only
    about = json.loads(json.dumps(result.provenance))
    assert about["recipe"]["items"] == 3
    again = Result.load(result.save(tmp_path))
    assert type(again) is OverrideResult and repr(again) == repr(result)
    assert again.plot().layout.xaxis.title.text == "share of answers"

    with pytest.raises(RecipeError, match="gave 'yes'"):
        TaskOverride(items=items, layer=3, judge=lambda case: "yes").run(toy, progress=False)


def test_a_verdict_that_cannot_be_had_is_missing_and_counted(toy):
    items = tuple(
        OverrideItem(name, Wanted("What is it?"), Wanted("The color of the food:"))
        for name in "abc"
    )
    asked = []

    def unsure(case):
        asked.append(case)
        if len(asked) % 3 == 1:
            raise JudgeError("no reply")
        return "both" if len(asked) % 3 == 2 else "neither"

    recipe = TaskOverride(items=items, layer=3, judge=unsure, max_new_tokens=2, controls=False)
    result = recipe.run(toy, progress=False)
    assert result.tables["predictions"]["choice"].tolist() == ["missing", "both", "neither"] * 3
    assert set(result.table["missing"]) == {1} and set(result.table["accuracy"]) == {0.5}
    assert "no verdict on 3 of 9 answers" in repr(result)
    other = TaskOverride(items=(*items[:2], items[0]), layer=3, judge=unsure)
    noted = recipe.to_dict()
    assert noted["items_digest"] != other.to_dict()["items_digest"] and " at 0x" not in str(noted)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tasks": ("food-color", "animal-young")}, r"TaskOverride\.tasks needs"),
        ({"tasks": "food-colour"}, "food-color"),
        ({"original": "system"}, r"TaskOverride\.original"),
        ({"judge": "gpt"}, "A judge is 'exact'"),
        ({"rows": 0}, r"TaskOverride\.rows is 0"),
        ({"layer": -1}, r"TaskOverride\.layer is -1"),
        ({"max_new_tokens": 0}, r"TaskOverride\.max_new_tokens"),
        ({"items": (OverrideItem("a", KNOWN, KNOWN),)}, r"TaskOverride\.layer must"),
        ({"items": (OverrideItem("a", KNOWN, Wanted("c")),), "layer": 1}, "know no answers to 'c'"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        TaskOverride(**fields)


def test_what_cannot_be_is_said_before_any_run(toy, load, no_forward):
    no_forward(toy)
    with pytest.raises(RecipeError, match=r"TaskOverride\.layer is 8"):
        TaskOverride(layer=8).run(toy)
    with pytest.raises(RecipeError, match="did not answer"):
        nobody = m.Endpoint("http://127.0.0.1:9", "m", retries=0)
        TaskOverride(layer=4, judge=nobody).run(toy)
    with pytest.raises(RecipeError, match="takes no pictures"):
        TaskOverride(layer=1).run(load("llama"))
