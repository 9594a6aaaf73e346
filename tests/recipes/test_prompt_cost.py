"""The cost of prompting: what is measured is what was asked for."""

from __future__ import annotations

import pytest

from recipes.plain import Plain
from vlm_lens.recipes import PromptCost, RecipeError, Result
from vlm_lens.recipes import prompt_cost as m
from vlm_lens.tasks import Task
from vlm_lens.terms import PATCHING, PROMPTING, QUERY_ONLY


@pytest.fixture(scope="module")
def result(toy):
    return PromptCost(n_examples=(5, 60), runs=5, warmup=1).run(toy, progress=False)


def test_tokens_equal_the_processor_s(result):
    plain, task, passes = Plain("toy-llava"), Task.load("country-capital"), result.tables["passes"]
    for n in (5, 60):
        raw = task.examples(n, "text", seed=3, split="test", query=task.test[2],
                            query_modality="image")  # fmt: skip
        expected = plain.inputs(raw.text, raw.images)["input_ids"].shape[1]
        mine = passes.query("n_examples == @n and run == 2")["tokens"].item()
        assert mine == expected
    query = plain.inputs("Q:<image>\nA:", [task.test[0].image])["input_ids"].shape[1]
    for way in (PATCHING, QUERY_ONLY):
        assert set(passes[passes["method"] == way]["tokens"]) == {query}


def test_ratios_are_of_medians_and_long_prompts_take_longer(result):
    table, passes = result.table, result.tables["passes"]
    assert passes.groupby(["method", "n_examples"]).size().tolist() == [5] * 4
    median = passes.groupby(["method", "n_examples"])["seconds"].median()
    long = table[table["n_examples"] == 60].iloc[0]
    expected = median[PROMPTING, 60] / median[PATCHING, 0]
    assert long["time_ratio"] == pytest.approx(expected) and expected > 1
    assert table[table["method"] == PATCHING]["time_ratio"].item() == 1


def test_what_is_patched_is_the_query_at_the_middle_block(toy):
    prompt, edit = PromptCost(n_examples=(1,)).ways(toy, 0)[PATCHING, 0]
    assert edit.point == "blocks.4.hook_resid_post"
    _, cache = toy.run_with_cache(
        prompt, names_filter="blocks.4.hook_resid_post", interventions=edit
    )
    assert (cache["blocks.4.hook_resid_post"][0, -1] == edit.value.data).all()


def test_files_and_figure(result, tmp_path):
    again = Result.load(result.save(tmp_path))
    assert type(again) is m.CostResult and repr(again) == repr(result)
    assert again.plot().layout.xaxis.title.text == "examples in the prompt"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_examples": (101,)}, r"PromptCost\.n_examples .* allow 1 to 99"),
        ({"n_examples": ()}, r"PromptCost\.n_examples"),
        ({"n_examples": (0,)}, r"PromptCost\.n_examples"),
        ({"runs": 0}, r"PromptCost\.runs is 0"),
        ({"source": "instruction"}, r"PromptCost\.source"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(RecipeError, match=message):
        PromptCost(**fields)


def test_what_the_model_cannot_do_is_said_before_any_run(toy, load, no_forward):
    no_forward(toy)
    with pytest.raises(RecipeError, match=r"PromptCost\.layer is 8"):
        PromptCost(layer=8).run(toy)
    with pytest.raises(RecipeError, match="takes no pictures"):
        PromptCost().run(load("llama"))
