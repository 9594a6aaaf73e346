"""Function vectors, found and used again with plain transformers and plain torch hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recipes.plain import QUERY, few_shot, small
from vlm_lens.recipes import FunctionVectors, RecipeError, Result
from vlm_lens.recipes import function_vectors as m
from vlm_lens.recipes.parts.heads import (
    function_vector,
    mean_head_outputs,
    patch_heads,
    random_heads,
)

TASK = small("food-color", 6, 8)
RECIPE = FunctionVectors(
    tasks=TASK, seeds=1, layer=4, heads=5, trials=4, corruption="mixed", n_examples=3
)


@pytest.fixture(scope="module")
def means(plain):
    return plain.heads(few_shot(TASK.validation, seed=1, n=3))


def test_means_effects_and_answers_equal_plain_transformers(toy, result, plain, means):
    prompts = TASK.example_sets("text", seed=1, n=3)
    mine = mean_head_outputs(toy, prompts)
    torch.testing.assert_close(mine.values, means, atol=1e-5, rtol=1e-4)
    corrupted = RECIPE.corrupted(TASK, 1)
    assert len(corrupted) == 4
    every = torch.zeros(4, *means.shape[:2])
    for i, (prompt, row) in enumerate(corrupted):
        token = plain.tokenizer(row.output, add_special_tokens=False)["input_ids"][0]

        def probability(edits=(), prompt=prompt, token=token):
            return plain.logits(prompt.text, inputs=edits).softmax(-1)[token]

        before = probability()
        for layer in (3, 4):
            for head in range(means.shape[1]):
                edit = [plain.put_heads(layer, [head], means)]
                every[i, layer, head] = probability(edit) - before
    table = result.tables["heads"].set_index(["layer", "head"])
    best = result.scores().top(1).iloc[0]
    assert (best["layer"], best["head"]) == table.index[0]
    assert best["average indirect effect"] == table["effect"].iloc[0]
    for layer in (3, 4):
        got = [table.loc[(layer, head), "effect"] for head in range(means.shape[1])]
        np.testing.assert_allclose(got, every.mean(0)[layer], atol=2e-6)
    chosen = [(int(r.layer), int(r.head)) for r in result.tables["heads"].head(5).itertuples()]
    vector = sum(
        plain.projection(layer).weight.unflatten(1, (plain.n_heads, -1))[:, head]
        @ means[layer, head]
        for layer, head in chosen
    )
    torch.testing.assert_close(
        function_vector(toy, mine, chosen), vector.detach(), atol=1e-4, rtol=1e-4
    )
    best = result.values["function_vector_layers"]

    def add(output):
        output = output.clone()
        output[:, -1] += vector.detach()
        return output

    uses = {
        m.ADDED: {"outputs": [(plain.blocks[best[m.ADDED]], add)]},
        m.REPLACED: {"outputs": [plain.put(best[m.REPLACED], vector.detach())]},
        m.HEADS: {
            "inputs": [
                plain.put_heads(layer, [h for at, h in chosen if at == layer], means)
                for layer in {layer for layer, _ in chosen}
            ]
        },
    }
    for method, edits in uses.items():
        said = [plain.says(QUERY, [row.image], **edits) for row in TASK.test]
        answers = result.predictions
        got = answers[answers["method"] == method]["prediction"]
        assert [text.strip() for text in got] == said


def test_the_planted_block_is_where_the_heads_are(toy):
    recipe = FunctionVectors(
        tasks=small("food-color", 12, 4), seeds=1, trials=6, corruption="mixed"
    )
    task = recipe.tasks
    found = recipe.effects(
        toy, {(task, 1): mean_head_outputs(toy, task.example_sets("text", seed=1))}
    )
    assert int(found["layer"][0]) in (3, 4) and found["effect"].is_monotonic_decreasing


def test_the_error_is_over_queries_however_many_seeds_ask_them(toy):
    class Again(FunctionVectors):
        def corrupted(self, task, seed):
            return super().corrupted(task, 1)[:3]

    mean = mean_head_outputs(toy, TASK.example_sets("text", seed=1, n=3)[:2])
    recipe = Again(tasks=TASK, n_examples=3, corruption="mixed")
    once, twice = (
        recipe.effects(toy, {(TASK, seed): mean for seed in range(n)}).set_index(["layer", "head"])
        for n in (1, 2)
    )
    assert (once["error"] > 0).any()
    np.testing.assert_allclose(twice["error"][once.index], once["error"], atol=1e-7)


def test_corrupted_prompts(toy):
    shuffled = FunctionVectors(tasks=TASK, trials=6).corrupted(TASK, 1)
    clean = TASK.example_sets("text", seed=1)
    colors = {row.output for row in TASK.validation}
    for (prompt, row), original, query in zip(shuffled, clean, TASK.validation, strict=True):
        assert row is query
        lines, others = prompt.text.split("\n"), original.text.split("\n")
        assert lines[::3] == others[::3] and sorted(lines) == sorted(others)
    assert any(p.text != o.text for (p, _), o in zip(shuffled, clean, strict=True))
    mixed = FunctionVectors(tasks=TASK, trials=6, corruption="mixed").corrupted(TASK, 1)
    said = [line[2:] for p, _ in mixed for line in p.text.split("\n") if line.startswith("A:")]
    assert not colors & set(said) - {""}


def test_random_heads_are_seeded_and_none_of_the_chosen(toy):
    chosen = ((1, 0), (3, 1), (3, 2), (4, 0), (4, 1), (4, 2))
    drawn = random_heads(toy, chosen, seed=3)
    assert drawn == random_heads(toy, chosen, seed=3) != random_heads(toy, chosen, seed=4)
    assert len(set(drawn)) == 6 and all(0 <= a < 8 and 0 <= b < 4 for a, b in drawn)
    patches = patch_heads(mean_head_outputs(toy, ["A:"]), drawn)
    assert sorted((int(p.point.split(".")[1]), h) for p in patches for h in p.heads) == list(drawn)
    for seed in range(20):
        assert not set(chosen) & set(random_heads(toy, chosen, seed=seed))
        alike = random_heads(toy, chosen, seed=seed, by_block=True)
        assert not set(chosen) & set(alike) and len(alike) == 6
        # block 4 has one other head: two come from elsewhere
        blocks = [block for block, _ in alike]
        assert blocks.count(1) >= 1 and blocks.count(3) == 2 and blocks.count(4) == 1
    assert random_heads(toy, [(a, b) for a in range(8) for b in range(4)], seed=1) == ()


def test_controls_are_as_long_as_the_function_vector(toy):
    means, chosen = mean_head_outputs(toy, TASK.example_sets("text", seed=1, n=3)), ((3, 0), (4, 1))
    made = RECIPE.methods(toy, means, chosen, {m.ADDED: 3, m.REPLACED: 5}, 1)
    assert list(made) == [m.ADDED, m.REPLACED, m.HEADS, m.RANDOM, m.RANDOM_REPLACED, m.RANDOM_HEADS]
    length = function_vector(toy, means, chosen).norm()
    raw = function_vector(toy, means, random_heads(toy, chosen, seed=1))
    for control, way, field in (
        (m.RANDOM, m.ADDED, "vector"), (m.RANDOM_REPLACED, m.REPLACED, "value"),
    ):  # fmt: skip
        value = getattr(made[control], field).data
        assert made[control].point == made[way].point
        torch.testing.assert_close(value.norm(), length)
        torch.testing.assert_close(value / length, raw / raw.norm())


def test_the_methods_stand_beside_those_of_the_paper(result, tmp_path):
    methods = set(result.table["method"])
    assert {"No Context", "Prompt", "Patch", m.ADDED, m.REPLACED, m.HEADS} <= methods
    assert {m.RANDOM, m.RANDOM_REPLACED, m.RANDOM_HEADS} <= methods
    assert len(result.tables["heads"]) == 32
    again = Result.load(result.save(tmp_path))
    assert type(again) is m.FunctionVectorsResult and repr(again) == repr(result)
    assert {"methods", "heads"} <= set(again.plots())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 0}, r"FunctionVectors\.heads is 0"),
        ({"trials": 0}, r"FunctionVectors\.trials is 0"),
        ({"corruption": "none"}, r"FunctionVectors\.corruption"),
        ({"source": "instruction"}, r"FunctionVectors\.source"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(RecipeError, match=message):
        FunctionVectors(**fields)


def test_too_many_heads_are_refused_before_any_run(toy, no_forward):
    no_forward(toy)
    with pytest.raises(RecipeError, match=r"FunctionVectors\.heads is 33; toy-llava has 32"):
        FunctionVectors(heads=33).run(toy)


def test_the_answers_token_is_the_one_after_the_delimiter(llama):
    # a tokenizer of the form of Llama's writes a space where a text begins: "red" alone is "▁re"
    before, whole = (llama.tokenizer(f"Q:kiwi\nA:{a}")["input_ids"] for a in ("", "red"))
    token = whole[len(before)]
    assert whole[: len(before)] == before and token != llama.to_first_token("red")
    means, heads = mean_head_outputs(llama, ["Q:a\nA:", "Q:b\nA:"]), llama.cfg.n_heads
    ids = torch.tensor([before])
    layer, head = 1, 2

    def edit(module, args):
        z = args[0].clone().unflatten(-1, (heads, -1))
        z[:, -1, head] = means.values[layer, head]
        return (z.flatten(-2),)

    with torch.no_grad():
        plain = llama.hf_model(ids).logits[0, -1].softmax(-1)[token]
        hook = llama.hf_model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(edit)
        edited = llama.hf_model(ids).logits[0, -1].softmax(-1)[token]
        hook.remove()
    got = m.effect(llama, "Q:kiwi\nA:", "red", means)[layer, head]
    torch.testing.assert_close(got, edited - plain, atol=1e-6, rtol=1e-3)
