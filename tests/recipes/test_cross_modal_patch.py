"""The transfer experiment, recomputed with plain transformers and plain torch hooks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from recipes.plain import QUERY, Plain, few_shot, right, small
from vlm_lens import HookedVLM
from vlm_lens.errors import VLMLensError
from vlm_lens.recipes import CrossModalPatch, RecipeError, Result, TransferResult
from vlm_lens.recipes.parts.transfer_result import best_layer
from vlm_lens.tasks import Task
from vlm_lens.terms import BEST_TOKEN, MAJORITY, METHODS, NO_CONTEXT, PATCH, PROMPT

TASK = "food-color"
SEEDS = (2,)


@pytest.fixture(scope="module")
def result(toy):
    return CrossModalPatch(tasks=TASK, seeds=SEEDS).run(toy, progress=False)


@pytest.mark.slow
def test_numbers_equal_plain_transformers(result):
    plain, task = Plain("toy-llava"), Task.load(TASK)
    val, test = task.validation, task.test
    layers, vectors = len(plain.blocks), {}
    sweep = np.zeros(layers)
    for seed in SEEDS:
        vectors[seed] = plain.vector(few_shot(val, seed))
        for layer in range(layers):
            put = [plain.put(layer, vectors[seed][layer])]
            said = [plain.says(QUERY, [row.image], outputs=put) for row in val]
            got = np.mean([right(s, r.answers) for s, r in zip(said, val, strict=True)])
            mine = result.layers.query("seed == @seed and layer == @layer")["accuracy"].item()
            assert got == pytest.approx(mine, abs=1e-12)
            sweep[layer] += got
    layer = int(np.argmax(np.round(sweep, 9)))
    assert result.layer == layer
    said = {NO_CONTEXT: [[plain.says(QUERY, [row.image]) for row in test]]}
    said[PATCH] = [
        [plain.says(QUERY, [r.image], outputs=[plain.put(layer, vectors[s][layer])]) for r in test]
        for s in SEEDS
    ]
    said[PROMPT] = [
        [
            plain.says(text, [row.image])
            for text, row in zip(few_shot(test, seed, QUERY), test, strict=True)
        ]
        for seed in SEEDS
    ]
    for method, runs in said.items():
        expected = np.mean(
            [[right(s, r.answers) for s, r in zip(run, test, strict=True)] for run in runs]
        )
        assert result.accuracy(method, TASK) == pytest.approx(expected, abs=1e-12)
        mine = result.predictions.query("method == @method")["prediction"].tolist()
        assert [m.strip() for m in mine] == [s for run in runs for s in run]


def test_balanced_accuracy_and_intervals_over_seeds(toy):
    from scipy import stats
    from sklearn.metrics import balanced_accuracy_score

    recipe = CrossModalPatch(tasks=small(TASK, 12, 12), seeds=(1, 2, 3), layer=4, controls=False)
    result = recipe.run(toy, progress=False)
    said = result.predictions.query("method == 'Prompt'")
    truth = said["answer"].tolist()
    taken = [a if right else "?" for a, right in zip(truth, said["correct"], strict=True)]
    row = result.table.query("method == 'Prompt' and task == @TASK").iloc[0]
    with pytest.warns(UserWarning, match="y_pred contains classes"):
        assert row["balanced"] == pytest.approx(balanced_accuracy_score(truth, taken))
    by_seed = said.groupby("seed")["correct"].mean()
    low, high = stats.t.interval(0.95, 2, by_seed.mean(), stats.sem(by_seed))
    assert (row["seeds_low"], row["seeds_high"]) == pytest.approx((max(low, 0), min(high, 1)))
    alone = result.table.query("method == 'No Context'")["seeds_low"]
    assert alone.isna().all()


def test_every_method_is_there_with_its_interval(result):
    table = result.table
    assert list(dict.fromkeys(table["method"])) == list(METHODS)
    assert list(dict.fromkeys(table["task"])) == [TASK, "mean"]
    assert (table["low"] <= table["accuracy"] + 1e-12).all()
    assert (table["high"] >= table["accuracy"] - 1e-12).all()
    assert result.accuracy() == result.accuracy("Patch", TASK)
    with pytest.raises(RecipeError, match="no 'Patsch'"):
        result.accuracy("Patsch")


def test_layer_ties_go_to_the_lowest_and_tasks_weigh_the_same():
    import pandas as pd

    columns = ["task", "seed", "layer", "accuracy"]
    rows = [("a", 1, 0, 0.2), ("a", 1, 1, 0.7), ("a", 1, 2, 0.7), ("a", 2, 0, 0.2),
            ("a", 2, 1, 0.7), ("a", 2, 2, 0.7), ("b", 1, 0, 0.9), ("b", 1, 1, 0.4),
            ("b", 1, 2, 0.4)]  # fmt: skip
    assert best_layer(pd.DataFrame(rows, columns=columns)) == 0
    assert best_layer(pd.DataFrame(rows[:6], columns=columns)) == 1


def test_single_vector_instruction_and_given_layer(toy):
    recipe = CrossModalPatch(tasks=small(TASK), seeds=1, vectors="single", layer=4, controls=False)
    one = recipe.run(toy, progress=False)
    assert one.layer == 4 and one.layers.empty
    assert set(one.table["method"]) == {
        NO_CONTEXT, PROMPT, PATCH, MAJORITY, BEST_TOKEN,
    }  # fmt: skip
    assert len(recipe.vector(toy, Task.load(TASK), 1).prompts) == 1
    with pytest.raises(RecipeError, match="no sweep"):
        one.plot_layers()
    told = CrossModalPatch(tasks=small(TASK), source="instruction", layer=4, controls=False)
    result = told.run(toy, progress=False)
    assert result.provenance["seeds"] == [1]
    assert told.prompts(Task.load(TASK), 1)[0].text.startswith(
        "The color of the food:\n\nQ:<image>"
    )


def test_vectors_from_the_base_language_model(toy):
    recipe = CrossModalPatch(
        tasks=small(TASK), seeds=1, layer=4, controls=False, source_model="toy-vicuna"
    )
    result = recipe.run(toy, progress=False)
    assert 0 <= result.accuracy() <= 1
    assert result.provenance["recipe"]["source_model"] == "toy-vicuna"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "words"}, r"CrossModalPatch\.source"),
        ({"tasks": "country-capitol"}, "country-capital"),
        ({"tasks": (TASK, TASK)}, r"CrossModalPatch\.tasks"),
        ({"seeds": 0}, r"CrossModalPatch\.seeds"),
        ({"seeds": (1, 1)}, r"CrossModalPatch\.seeds"),
        ({"layer": -1}, r"CrossModalPatch\.layer"),
        ({"n_examples": 0}, r"CrossModalPatch\.n_examples"),
        (
            {"controls": ("wrong",)},
            r"CrossModalPatch\.controls names 'wrong'; there are 'wrong-same'",
        ),
        ({"controls": "random"}, r"CrossModalPatch\.controls"),
        ({"source": "instruction", "controls": ("single",)}, "there are 'wrong-same'"),
        ({"source": "instruction", "form": "chat"}, r"CrossModalPatch\.form"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        CrossModalPatch(**fields)


def test_a_list_of_tasks_is_as_good_as_a_tuple():
    names = ["food-color", "food-flavor"]
    assert CrossModalPatch(names) == CrossModalPatch(tuple(names))


def test_what_the_model_cannot_do_is_said_before_any_run(toy, load, no_forward):
    no_forward(toy)
    with pytest.raises(RecipeError, match=r"CrossModalPatch\.layer is 99"):
        CrossModalPatch(layer=99).run(toy)
    with pytest.raises(RecipeError, match="takes no pictures"):
        CrossModalPatch().run(load("llama"))
    with pytest.raises(VLMLensError, match="no chat template"):
        CrossModalPatch(form="chat").run(toy)
    with pytest.raises(RecipeError, match=r"CrossModalPatch\.source is 'image'"):
        CrossModalPatch(tasks=TASK, source="image", source_model="toy-vicuna").run(toy)


def test_more_examples_than_there_are_are_refused_before_any_run(toy, no_forward):
    no_forward(toy)
    for rows, said in (((6, 4), "4 test rows"), ((4, 6), "4 validation rows")):
        with pytest.raises(RecipeError, match=rf"n_examples is 4; {TASK} has {said}.* allows 3"):
            CrossModalPatch(small(TASK, *rows), n_examples=4).run(toy)


def test_a_source_model_is_loaded_like_the_model_and_must_fit(toy, load, tmp_path):
    recipe = CrossModalPatch(tasks=TASK, source_model="toy-vicuna")
    half = HookedVLM.from_pretrained("toy-llava", dtype="bfloat16")
    assert recipe.source_vlm(half).dtype == torch.bfloat16
    narrow = tiny.save("llama", tmp_path)
    with pytest.raises(RecipeError, match=r"CrossModalPatch\.source_model: .* has d_model"):
        CrossModalPatch(tasks=TASK, source_model=str(narrow)).source_vlm(toy)


def test_files_figures_and_text(result, tmp_path):
    again = Result.load(result.save(tmp_path))
    assert type(again) is TransferResult and again.layer == result.layer
    assert repr(again) == repr(result)
    assert {p.name for p in tmp_path.glob("*.html")} == {
        "transfer.html", "methods.html", "layer_sweep.html",
    }  # fmt: skip
    assert result.plot().layout.yaxis.title.text == "accuracy (prefix rule)"
    bars = {bar.name for bar in result.plot().data}
    assert BEST_TOKEN in bars and len(bars) == 7  # more would be too thin to read
    assert len(result.plot_layers().data) == 1


def test_a_control_that_some_tasks_cannot_have_has_no_mean(toy):
    """Two tasks of one domain are each other's control; a task alone in its domain has none."""
    tasks = [Task.load(name) for name in ("country-capital", "country-currency", "animal-latin")]
    tasks[2] = replace(tasks[2], name="alone-latin", domain="alone")
    few = tuple(replace(t, validation=t.validation[:4], test=t.test[:4]) for t in tasks)
    found = CrossModalPatch(few, source="text", query="text", seeds=1, layer=4, n_examples=2)
    table = found.run(toy, progress=False).summary().set_index("method")
    row = table.loc["Wrong task, same domain"]
    assert row["mean"] != row["mean"] and row["latin"] != row["latin"]
    assert row["95 % queries"] == "-" and row["capital"] == row["capital"]


def test_whole_answers_equal_plain_teacher_forcing(toy, plain):
    """Each answer's tokens behind the prompt, by transformers, and their most likely ones."""
    task, layer = small("animal-latin", 8, 6), 4
    recipe = CrossModalPatch(task, seeds=1, layer=layer, controls=False, whole_answers=True)
    result = recipe.run(toy, progress=False)
    vector = recipe.vector(toy, task, 1).layer(layer)
    prompts = {
        NO_CONTEXT: [QUERY] * 6, PATCH: [QUERY] * 6, PROMPT: few_shot(task.test, 1, QUERY),
    }  # fmt: skip
    several = 0
    for method, texts in prompts.items():
        mine = result.predictions.query("method == @method")
        for text, row, found in zip(texts, task.test, mine.itertuples(), strict=True):
            before = plain.inputs(text, [row.image])["input_ids"].shape[1]
            each = []
            for answer in row.answers:
                inputs = plain.inputs(text + answer, [row.image])
                ids, hooks = inputs["input_ids"][0, before:], []
                if method == PATCH:

                    def write(module, args, output, at=before - 1):
                        output = output.clone()
                        output[:, at] = vector
                        return output

                    hooks = [plain.blocks[layer].register_forward_hook(write)]
                with torch.no_grad():
                    logits = plain.model(**inputs).logits[0, before - 1 : -1]
                [hook.remove() for hook in hooks]
                log_probs = logits.log_softmax(-1).gather(-1, ids[:, None])
                each.append((float(log_probs.mean().exp()), bool((logits.argmax(-1) == ids).all())))
                several += len(ids) > 1
            assert found.answer_prob == pytest.approx(max(p for p, _ in each), rel=1e-3)
            assert found.whole == any(greedy for _, greedy in each)
    assert several
    table = result.table.set_index(["method", "task"])
    assert (
        table["whole"][PATCH, "mean"]
        == result.predictions.query("method == 'Patch'")["whole"].mean()
    )
    assert np.isnan(table["whole"][MAJORITY, "mean"])
    assert "whole" in result.summary() and any(
        "teacher" in n or "greedy" in n for n in result.notes
    )
