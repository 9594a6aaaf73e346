"""Instruction, examples and ensemble, recomputed with plain transformers and torch hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recipes.plain import QUERY, few_shot, right, small
from vlm_lens.recipes import CrossModalPatch, InstructionEnsemble, RecipeError, Result

LAYER, SEED, COUNTS = 4, 2, (2, 6)
TASK = small("food-color")
RECIPE = InstructionEnsemble(TASK, counts=COUNTS, seeds=(SEED,), layer=LAYER, n_examples=2)


def at_last(plain, text):
    kept = []
    plain.logits(text, outputs=[(plain.blocks[LAYER], kept.append)])
    return kept[0][0, -1]


def test_numbers_equal_plain_transformers(result, plain):
    rows = TASK.validation
    told = at_last(plain, TASK.instruction)
    # averaged, n = 6: three of the eight prompts of two examples, at the second example's delimiter
    texts = few_shot(rows, SEED, n=2)
    np.random.seed(SEED)
    chosen = np.random.permutation(len(texts))[:3]
    averaged = plain.vector([texts[i] for i in chosen])[LAYER]
    # in context, n = 6: one prompt, the sixth answer open
    np.random.seed(SEED)
    *full, last = (rows[i] for i in np.random.permutation(len(rows))[:6])
    text = "".join(f"Q:{r.input}\nA:{r.output}\n\n" for r in full) + f"Q:{last.input}\nA:"
    in_context = at_last(plain, text)
    for method, meaning, vector in (
        ("Instruction", "", told),
        ("Examples", "averaged", averaged), ("Ensemble", "averaged", (averaged + told) / 2),
        ("Examples", "in context", in_context),
        ("Ensemble", "in context", (in_context + told) / 2),
    ):  # fmt: skip
        put = [plain.put(LAYER, vector)]
        said = [plain.says(QUERY, [row.image], outputs=put).lower() for row in TASK.test]
        answers = [[a.lower() for a in row.answers] for row in TASK.test]
        expected = np.mean([right(s, a) for s, a in zip(said, answers, strict=True)])
        n = 0 if method == "Instruction" else 6
        assert result.accuracy(method, n, meaning) == pytest.approx(expected)


def test_all_prompts_averaged_are_the_papers_vector(toy):
    recipe = InstructionEnsemble(TASK, counts=(8,), meanings=("averaged",), n_examples=1, seeds=1)
    values = recipe.values(toy, TASK, LAYER, recipe.transfer().reader(toy))
    mean = CrossModalPatch(tasks=TASK, n_examples=1).vector(toy, TASK, 1).layer(LAYER)
    torch.testing.assert_close(values["Examples", "averaged", 8, 1], mean)
    assert len(values) == 3


def test_the_layer_is_that_of_the_mean_vector(toy, result):
    chosen = InstructionEnsemble(
        TASK, counts=(2,), meanings=("averaged",), seeds=1, n_examples=2
    ).run(toy, progress=False)
    other = CrossModalPatch(tasks=TASK, seeds=1, n_examples=2, ignore_case=True, controls=False)
    assert chosen.values["layer"] == other.run(toy, progress=False).layer
    assert result.values["layer"] == LAYER


def test_table_figure_and_files(result, tmp_path):
    assert set(result.table["task"]) == {"food-color", "mean"}
    assert result.table.query("task == 'mean'")["sd"].isna().all()
    with pytest.raises(RecipeError, match="no 'Examples' with n=5"):
        result.accuracy("Examples", 5)
    figure = result.plot()
    assert {t.name for t in figure.data if t.showlegend} == {"Examples", "Ensemble", "Instruction"}
    assert figure.layout.xaxis.title.text == "examples in all averaged prompts"
    again = Result.load(result.save(tmp_path))
    assert repr(again) == repr(result) and "Ensemble, in context" in repr(result)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"counts": (5, 7)}, "counts has 7; a count is a multiple"), ({"counts": ()}, "counts is"),
     ({"counts": (35,)}, "counts goes to 35, which takes 35 validation rows"),
     ({"meanings": ("averaged", "averaged")}, "meanings is"),
     ({"seeds": 0}, r"InstructionEnsemble\.seeds")],
)  # fmt: skip
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(RecipeError, match=message):
        InstructionEnsemble(**fields)


def test_a_model_without_eyes_is_refused_before_any_run(load, no_forward):
    no_forward(load("llama"))
    with pytest.raises(RecipeError, match="takes no pictures"):
        InstructionEnsemble().run(load("llama"))
