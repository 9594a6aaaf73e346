from __future__ import annotations

import numpy as np
import pytest
import torch

from vlm_lens import HookedVLM
from vlm_lens.recipes import InformationFlow, RecipeError, Result
from vlm_lens.recipes.information_flow import positions, windows
from vlm_lens.tasks import Task
from vlm_lens.terms import MEAN


@pytest.fixture(scope="module")
def toy():
    return HookedVLM.from_pretrained("toy-llava")


@pytest.fixture(scope="module")
def result(toy):
    recipe = InformationFlow(
        tasks=("country-capital", "food-color"), n_examples=1, window=3, rows=3
    )
    return recipe, recipe.run(toy, progress=False)


def test_windows_are_centred_and_cut_at_the_ends():
    assert windows(5, 3) == [(0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4)]
    assert windows(4, 1) == [(0,), (1,), (2,), (3,)]
    assert windows(4, 2) == [(0, 1), (1, 2), (2, 3), (3,)]


def test_groups_share_out_the_prompt(toy):
    task = Task.load("country-capital")
    for modality in ("image", "text"):
        row = task.rows("test")[0]
        prompt = toy.as_prompt(task.query(row, modality))
        groups = positions(prompt.layout, None if modality == "image" else row.given("text"))
        everywhere = sorted(p for group in groups.values() for p in group)
        assert everywhere == list(range(prompt.length)) and groups["last"] == [prompt.length - 1]
    assert "".join(prompt.layout.strings[p] for p in groups["input"]).strip() == row.input


def masked_prob(toy, prompt, queries, keys, blocks, token):
    """The token's probability by plain transformers, eager, minus infinity added to the mask."""
    layers = toy.hf_model.model.language_model.layers
    handles = []

    def add(module, args, kwargs):
        mask = kwargs["attention_mask"].clone()
        for q in queries:
            mask[:, :, q, keys] = torch.finfo(mask.dtype).min
        return args, {**kwargs, "attention_mask": mask}

    before = toy.hf_model.config._attn_implementation
    toy.hf_model.set_attn_implementation("eager")
    try:
        for block in blocks:
            hook = layers[block].self_attn.register_forward_pre_hook(add, with_kwargs=True)
            handles.append(hook)
        with torch.no_grad():
            logits = toy.hf_model(**prompt.inputs).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()
        toy.hf_model.set_attn_implementation(before)
    return float(logits.softmax(-1)[token])


def test_changes_are_those_of_a_mask_in_plain_transformers(toy, result):
    recipe, found = result
    task = Task.load("country-capital")
    raw = recipe.prompts(task)[1]
    prompt = toy.as_prompt(raw)
    token = toy.generate(prompt, max_new_tokens=1).tokens[0, 0]
    groups = positions(prompt.layout, None)
    rows = found.tables["rows"].query("task == 'country-capital' and row == 1")
    plain = masked_prob(toy, prompt, [], [], [], token)
    assert rows["p"].iloc[0] == pytest.approx(plain, rel=1e-4)
    blocks = windows(toy.cfg.n_layers, 3)
    for edge in ("input -> last", "question -> last", "input -> question"):
        keys, queries = (groups[g] for g in edge.split(" -> "))
        for layer in (0, 4, toy.cfg.n_layers - 1):
            cut = masked_prob(toy, prompt, queries, keys, blocks[layer], token)
            (got,) = rows.query("edge == @edge and layer == @layer")["p_cut"]
            assert got == pytest.approx(cut, rel=2e-3, abs=1e-5), (edge, layer)


def test_means_and_intervals(result, tmp_path):
    _, found = result
    rows, table = found.tables["rows"], found.table
    one = table.query("task == 'food-color' and edge == 'input -> last' and layer == 2").iloc[0]
    mine = rows.query("task == 'food-color' and edge == 'input -> last' and layer == 2")["change"]
    assert (
        one["change"] == pytest.approx(mine.mean()) and one["low"] <= one["change"] <= one["high"]
    )
    both = table.query("edge == 'input -> last' and layer == 2").set_index("task")["change"]
    assert both[MEAN] == pytest.approx(both.drop(MEAN).mean())
    assert len(found.tables["answers"]) == 6
    again = Result.load(found.save(tmp_path / "out"))
    np.testing.assert_allclose(again.table["change"], table["change"])
    (figure,) = found.plots().values()
    assert {t.name for t in figure.data if t.name} == {
        "input → last", "question → last", "input → question", "random → last"
    }  # fmt: skip


def test_on_the_model_whose_edge_is_known(toy):
    """In toy-induction the answer is read from the picture at block 2 alone."""
    from PIL import Image, ImageDraw

    from vlm_lens import AttentionKnockout
    from vlm_lens.measures import Prob

    vlm = HookedVLM.from_pretrained("toy-induction")
    picture = Image.new("RGB", (224, 224), (128, 128, 128))
    ImageDraw.Draw(picture).rectangle((62, 118, 105, 161), fill="blue")
    prompt = vlm.prompt("Q:<image>b3\nA:", images=[picture])
    groups = positions(prompt.layout, None)
    edits = [
        AttentionKnockout(queries=groups["last"], keys=groups["input"], layers=(layer,))
        for layer in range(3)
    ]
    found = vlm.sweep(prompt, edits, measure=Prob("blue"), progress=False)
    assert found.baseline[0]["prob"] > 0.999
    assert [round(r["prob"], 2) for r in found.records] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 0}, "InformationFlow.window is 0; the least is 1"),
        ({"n_examples": 5000}, "n_examples is 5000; country-capital has"),
        ({"query": "sound"}, "InformationFlow.query is 'sound'"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(RecipeError, match=message):
        InformationFlow(tasks="country-capital", **fields)


def test_what_the_model_cannot(toy, load):
    with pytest.raises(RecipeError, match="window is 99; the model has"):
        InformationFlow(tasks="country-capital", window=99).run(toy)
    with pytest.raises(RecipeError, match="takes no pictures"):
        InformationFlow(tasks="country-capital").run(load("llama"))


def test_an_answer_of_two_tokens_is_cut_where_each_is_predicted(toy):
    recipe = InformationFlow(tasks="country-capital", n_examples=1, window=3, answer_tokens=2)
    prompt = toy.as_prompt(recipe.prompts(Task.load("country-capital"))[0])
    groups, answer = positions(prompt.layout, None), [20, 33]
    rows = recipe.swept(toy, prompt, groups, answer, np.random.default_rng(0))
    found = next(r["p_cut"] for r in rows if (r["edge"], r["layer"]) == ("input -> last", 2))
    inputs = dict(prompt.inputs)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([answer[:1]])], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    whole, n = toy.as_prompt(inputs), prompt.length
    blocks = windows(toy.cfg.n_layers, 3)[2]
    first = masked_prob(toy, prompt, [n - 1], groups["input"], blocks, answer[0])
    second = masked_prob(toy, whole, [n - 1, n], groups["input"], blocks, answer[1])
    assert found == pytest.approx((first * second) ** 0.5, rel=1e-3)
