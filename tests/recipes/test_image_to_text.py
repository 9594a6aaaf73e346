"""From pictures to descriptions: the added method by hand, the rest as CrossModalPatch."""

from __future__ import annotations

import numpy as np
import pytest

from recipes.plain import Plain, right, small
from vlm_lens.recipes import CrossModalPatch, ImageToText, RecipeError
from vlm_lens.terms import TEXT_PROMPT

LAYER, SEED = 4, 2
TASK = small("food-color", 10, 12)


@pytest.fixture(scope="module")
def result(toy):
    recipe = ImageToText(TASK, seeds=(SEED,), layer=LAYER, controls=False)
    return recipe.run(toy, progress=False)


def test_prompting_with_descriptions_equals_plain_transformers(result):
    plain, rows = Plain("toy-llava"), [row for row in TASK.test if row.description]
    np.random.seed(SEED)
    said = []
    for asked, row in enumerate(rows):
        drawn = np.random.permutation([i for i in range(len(rows)) if i != asked])[:3]
        shown = "".join(f"Q:{rows[i].description}\nA:{rows[i].output}\n\n" for i in drawn)
        said.append(plain.says(f"{shown}Q:{row.description}\nA:"))
    mine = result.predictions.query("method == @TEXT_PROMPT")
    assert [m.strip() for m in mine["prediction"]] == said
    expected = np.mean([right(s, r.answers) for s, r in zip(said, rows, strict=True)])
    assert result.accuracy(TEXT_PROMPT) == pytest.approx(expected)


def test_the_rest_is_cross_modal_patch_from_pictures(result, toy):
    other = CrossModalPatch(
        tasks=TASK, source="image", query="description", seeds=(SEED,), layer=LAYER, n_examples=3,
        controls=False,
    ).run(toy, progress=False)  # fmt: skip
    mine = result.predictions[result.predictions["method"] != TEXT_PROMPT]
    assert mine["prediction"].tolist() == other.predictions["prediction"].tolist()
    assert result.layer == LAYER and TEXT_PROMPT in repr(result)
    assert set(other.table["task"]) == {"food-color", "mean"}


def test_wrong_fields_and_models_are_named(toy, load, no_forward):
    with pytest.raises(RecipeError, match=r"ImageToText\.query"):
        ImageToText(query="image")
    with pytest.raises(RecipeError, match=r"ImageToText\.seeds is 0"):
        ImageToText(seeds=0)
    no_forward(toy)
    with pytest.raises(RecipeError, match=r"ImageToText\.layer is 99"):
        ImageToText(layer=99).run(toy)
    with pytest.raises(RecipeError, match="takes no pictures"):
        ImageToText().run(load("llama"))
