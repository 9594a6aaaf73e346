"""Noisy instructions, with one vector read and written by plain transformers."""

from __future__ import annotations

import pytest

from recipes.plain import QUERY, Plain, small
from vlm_lens.recipes import NoisyInstruction, RecipeError, Result
from vlm_lens.recipes import noisy_instruction as m

TASKS = tuple(small(name, 6, 8) for name in ("food-color", "food-flavor"))


@pytest.fixture(scope="module")
def result(toy):
    recipe = NoisyInstruction(tasks=TASKS, swaps=(1, 3), seeds=2, layer=4, controls=False)
    return recipe.run(toy, progress=False)


def test_predictions_equal_plain_transformers(result):
    plain, task = Plain("toy-llava"), TASKS[0]
    text = m.swap_characters(task.instruction, 3, seed=2)
    patch = plain.put(4, plain.vector([text], nth=-1)[4])
    said = [plain.says(QUERY, [row.image], outputs=[patch]) for row in task.test]
    mine = result.predictions.query(
        "method == 'Patch, 3 swaps' and task == @task.name and seed == 2"
    )["prediction"]
    assert [text.strip() for text in mine] == said


def test_swaps_stay_in_words_keep_case_and_are_seeded():
    text = "The color of the food:"
    for swaps in (1, 2, 5):
        for seed in range(20):
            noisy = m.swap_characters(text, swaps, seed=seed)
            assert noisy == m.swap_characters(text, swaps, seed=seed) != text
            for old, new in zip(text.split(" "), noisy.split(" "), strict=True):
                assert sorted(old.lower()) == sorted(new.lower())
                assert [c.isupper() for c in old] == [c.isupper() for c in new]
            assert noisy.endswith(":")
    assert m.swap_characters("Th", 1, seed=0) == "Ht"
    one = sum(a != b for a, b in zip(text, m.swap_characters(text, 1, seed=1), strict=True))
    assert one in (1, 2)  # one only where case hides the other
    with pytest.raises(RecipeError, match="no place left"):
        m.swap_characters("ab cc", 2, seed=0)


def test_the_clean_instruction_is_the_patch_of_the_paper(result, tmp_path):
    table = result.by_swaps()
    assert list(dict.fromkeys(table["swaps"])) == [0, 1, 3]
    clean = table[(table["swaps"] == 0) & (table["task"] == "mean")]["accuracy"].item()
    assert clean == result.accuracy("Patch")
    texts = result.tables["instructions"]
    assert len(texts) == 2 * 2 * 2 and texts["instruction"].nunique() == 8
    again = Result.load(result.save(tmp_path))
    assert type(again) is m.NoisyResult and repr(again) == repr(result)
    assert len(again.plot().data) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"swaps": (0, 1)}, r"NoisyInstruction\.swaps is \(0, 1\)"),
        ({"swaps": ()}, r"NoisyInstruction\.swaps"),
        ({"swaps": (500,)}, "no place left"),
        ({"source": "text"}, r"NoisyInstruction\.source"),
        ({"layer": -2}, r"NoisyInstruction\.layer"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(RecipeError, match=message):
        NoisyInstruction(**fields)
