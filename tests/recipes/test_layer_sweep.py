"""The layer sweep, recomputed with plain transformers and plain torch hooks."""

from __future__ import annotations

import numpy as np
import pytest

from recipes.plain import QUERY, Plain, few_shot, right, small
from vlm_lens.recipes import CrossModalPatch, LayerSweep, RecipeError, Result

SEEDS = (1, 3)


@pytest.fixture(scope="module")
def result(toy):
    recipe = LayerSweep(
        tasks=(small("food-color"), small("food-flavor")), sources=("text", "instruction"),
        seeds=SEEDS,
    )  # fmt: skip
    return recipe.run(toy, progress=False)


def test_a_line_equals_plain_transformers(result):
    plain, task, layer = Plain("toy-llava"), small("food-color"), 3
    rows, by_seed, prompted = task.validation, [], []
    for seed in SEEDS:
        put = [plain.put(layer, plain.vector(few_shot(rows, seed))[layer])]
        by_seed.append(np.mean([right(plain.says(QUERY, [r.image], outputs=put), r.answers)
                                for r in rows]))  # fmt: skip
        prompts = zip(few_shot(rows, seed, QUERY), rows, strict=True)
        prompted.append(np.mean([right(plain.says(p, [r.image]), r.answers) for p, r in prompts]))
    mine = result.table.query("source == 'text' and task == 'food-color' and layer == @layer")
    assert mine["accuracy"].item() == pytest.approx(np.mean(by_seed))
    assert mine["sd"].item() == pytest.approx(np.std(by_seed, ddof=1))
    assert mine["prompting"].item() == pytest.approx(np.mean(prompted))


def test_the_best_layer_is_that_of_cross_modal_patch(result, toy):
    tasks = (small("food-color"), small("food-flavor"))
    other = CrossModalPatch(tasks=tasks, seeds=SEEDS, controls=False).run(toy, progress=False)
    assert result.best() == other.layer
    text = result.tables["seeds"].query("source == 'text'").drop(columns=["source", "query"])
    assert text.to_numpy().tolist() == other.layers.to_numpy().tolist()
    mean = result.table.query("source == 'text' and task == 'mean'").set_index("layer")["accuracy"]
    assert mean.max() == mean[result.best()]


def test_an_instruction_takes_one_seed(result):
    seeds = result.tables["seeds"].query("source == 'instruction'")
    assert set(seeds["seed"]) == {SEEDS[0]}
    assert result.table.query("source == 'instruction'")["sd"].isna().all()


def test_figure_text_and_files(result, tmp_path):
    figure = result.plot()
    assert [a.text for a in figure.layout.annotations[:2]] == [
        "text → image",
        "instruction → image",
    ]
    assert (
        "block" in figure.layout.xaxis.title.text and "accuracy" in figure.layout.yaxis.title.text
    )
    again = Result.load(result.save(tmp_path))
    assert again.best("instruction") == result.best("instruction")
    assert "text -> image, block" in repr(again) and repr(again) == repr(result)
    with pytest.raises(RecipeError, match="image -> text was not tried; there is text -> image"):
        result.best("image", "text")


def test_wrong_fields_are_named_before_any_run(toy, load, no_forward):
    no_forward(toy)
    with pytest.raises(RecipeError, match=r"LayerSweep\.sources"):
        LayerSweep(sources=("text", "text"))
    with pytest.raises(RecipeError, match=r"LayerSweep\.queries"):
        LayerSweep(queries=())
    with pytest.raises(RecipeError, match=r"LayerSweep\.seeds is 0"):
        LayerSweep(seeds=0)
    with pytest.raises(RecipeError, match="takes no pictures"):
        LayerSweep().run(load("llama"))
