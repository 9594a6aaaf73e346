"""The search against closed forms; losses and answers against plain transformers."""

from __future__ import annotations

import pytest
import torch

from recipes.plain import QUERY, Plain, few_shot, small
from vlm_lens.recipes import MultimodalTaskVectors, RecipeError, Result
from vlm_lens.recipes import multimodal_task_vectors as m
from vlm_lens.recipes.parts.heads import mean_head_outputs, random_heads

TASK = small("food-color", 6, 8)
RECIPE = MultimodalTaskVectors(tasks=TASK, seeds=1, layer=4, steps=12, samples=8, n_examples=3)


def by_layer(heads):
    return {layer: [h for at, h in heads if at == layer] for layer, _ in heads}


def test_losses_and_answers_equal_plain_transformers(toy, result):
    plain = Plain("toy-llava")
    means = plain.heads(few_shot(TASK.validation, seed=1, n=3))
    mine = mean_head_outputs(toy, TASK.example_sets("text", seed=1, n=3))
    row = TASK.validation[0]
    token = plain.tokenizer(row.output, add_special_tokens=False)["input_ids"][0]
    sets = [[(4, 0), (4, 1), (2, 3)], [], [(0, 0)]]
    expected = []
    for heads in sets:
        edits = [plain.put_heads(at, some, means) for at, some in by_layer(heads).items()]
        logits = plain.logits(QUERY, [row.image], inputs=edits)
        expected.append(-logits.log_softmax(-1)[token])
    got = m.loss(toy, toy.as_prompt(TASK.query(row, "image")), row.output, mine, sets)
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-4, rtol=1e-4)

    table = result.tables["heads"]
    chosen = [(int(r.layer), int(r.head)) for r in table[table["chosen"]].itertuples()]
    control = random_heads(toy, chosen, seed=1, by_block=True)
    assert not set(control) & set(chosen)
    answers = result.predictions
    for method, heads in ((m.MTV, chosen), (m.RANDOM, control)):
        edits = [plain.put_heads(at, some, means) for at, some in by_layer(heads).items()]
        said = [plain.says(QUERY, [row.image], inputs=edits) for row in TASK.test]
        got = answers[answers["method"] == method]["prediction"]
        assert [text.strip() for text in got] == said


def test_the_search_finds_the_heads_that_lower_a_known_loss():
    good = {(0, 1), (2, 0), (2, 3)}

    def losses(sets):
        return torch.tensor([float(sum(1 if h not in good else -2 for h in one)) for one in sets])

    found = m.search(losses, (3, 4), steps=150, samples=32, seed=1)
    assert set(found.heads) == good
    assert found.history["loss"].iloc[-1] < found.history["loss"].iloc[0] - 4
    assert found.table()["chosen"].sum() == 3
    again = m.search(losses, (3, 4), steps=150, samples=32, seed=1)
    torch.testing.assert_close(found.probabilities, again.probabilities, atol=0, rtol=0)


def test_a_step_follows_the_gradient_of_reinforce():
    seen = []

    def losses(sets):
        drawn = torch.zeros(len(sets), 2, 2)
        for i, one in enumerate(sets):
            for head in one:
                drawn[(i, *head)] = 1
        seen.append((drawn, torch.arange(len(sets)).float() ** 2))
        return seen[-1][1]

    found = m.search(losses, (2, 2), steps=1, samples=40, seed=5)
    drawn, value = seen[0]
    p = torch.sigmoid(torch.tensor(-1.0))
    standard = (value - value.mean()) / (value.std() + 1e-3)
    gradient = (standard[:, None, None] * (drawn - p)).sum(0)  # of log-chances, closed form
    moved = found.probabilities.logit() + 1
    torch.testing.assert_close(moved, -0.1 * gradient.sign(), atol=1e-4, rtol=0)


def test_without_a_likely_head_the_likeliest_is_taken():
    found = m.Search(torch.tensor([[0.1, 0.4], [0.2, 0.3]]), None)
    assert found.heads == ((0, 1),)


def test_the_methods_stand_beside_those_of_the_paper(result, tmp_path):
    assert {"Prompt", "Patch", m.MTV, m.RANDOM} <= set(result.table["method"])
    assert len(result.tables["search"]) == 12 and len(result.tables["heads"]) == 32
    again = Result.load(result.save(tmp_path))
    assert type(again) is m.MultimodalTaskVectorsResult and repr(again) == repr(result)
    assert {"methods", "heads", "search"} <= set(again.plots())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, r"MultimodalTaskVectors\.steps is 0"),
        ({"samples": 1}, r"MultimodalTaskVectors\.samples is 1"),
        ({"learning_rate": 0.0}, r"MultimodalTaskVectors\.learning_rate"),
        ({"query": "sound"}, r"MultimodalTaskVectors\.query"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(RecipeError, match=message):
        MultimodalTaskVectors(**fields)


def test_the_loss_is_of_the_token_after_the_delimiter(llama):
    # a tokenizer of the form of Llama's writes a space where a text begins: "red" alone is "▁re"
    before, whole = (llama.tokenizer(f"Q:kiwi\nA:{a}")["input_ids"] for a in ("", "red"))
    token = whole[len(before)]
    assert whole[: len(before)] == before and token != llama.to_first_token("red")
    with torch.no_grad():
        expected = -llama.hf_model(torch.tensor([before])).logits[0, -1].log_softmax(-1)[token]
    got = m.loss(
        llama, llama.as_prompt("Q:kiwi\nA:"), "red", mean_head_outputs(llama, ["A:"]), [[]]
    )
    torch.testing.assert_close(got[0], expected, atol=1e-5, rtol=1e-5)
