"""Decodings of task vectors, recomputed with plain transformers."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from recipes.plain import Plain, few_shot, small
from vlm_lens.figures.style import plain_lines
from vlm_lens.recipes import RecipeError, Result, TopDecodings

RUNS, LAYER = 6, 4


@pytest.fixture(scope="module")
def result(toy):
    tasks = (small("food-color"), small("country-capital"))
    return TopDecodings(tasks, runs=RUNS, k=3, split="validation").run(toy, progress=False)


def test_tokens_equal_plain_transformers(result):
    plain = Plain("toy-llava")
    norm, head = plain.model.model.language_model.norm, plain.model.lm_head
    rows, kept = small("food-color").validation, []
    for text in few_shot(rows, 1)[:RUNS]:
        text = text[: text.rindex("A:", 0, text.rindex("A:")) + 2]  # up to the fifth example's
        found = []
        plain.logits(text, outputs=[(plain.blocks[LAYER], found.append)])
        kept.append(found[0][0, -1])
    with torch.no_grad():
        each = head(norm(torch.stack(kept))).softmax(-1)
        mean = head(norm(torch.stack(kept).mean(0))).softmax(-1)
    told = "task == 'food-color' and source == 'text' and layer == @LAYER"
    for table, probs in ((result.table, mean), (result.tables["distribution"], each.mean(0))):
        mine, best = table.query(told), probs.topk(3)
        expected = [plain.tokenizer.decode([i]).strip() for i in best.indices.tolist()]
        assert [t.strip() for t in mine["token"]] == expected
        assert mine["prob"].tolist() == pytest.approx(best.values.tolist(), rel=1e-3)
        assert mine["rank"].tolist() == [1, 2, 3]
    ones = Counter(plain.tokenizer.decode([i]).strip() for i in each.argmax(-1).tolist())
    mine = result.tables["top_1"].query(told)
    got = {t.strip(): n for t, n in zip(mine["token"], mine["count"], strict=True)}
    assert got == ones and mine["share"].sum() == pytest.approx(1)


def test_layers_go_from_the_embedding_to_the_last_block(result, toy):
    assert list(dict.fromkeys(result.table["layer"])) == ["embed", *range(toy.cfg.n_layers)]
    assert result.values["layer"] == 4  # as deep as 18 of 32, of 8 blocks
    assert result.top("food-color", layer="embed") == result.top(
        "country-capital", "image", layer="embed"
    )
    assert result.top("food-color")[0].strip() == "color"
    with pytest.raises(RecipeError, match="'food-color' from 'text' at block 9"):
        result.top("food-color", layer=9)


def test_an_instruction_is_one_run(toy):
    told = TopDecodings("food-color", sources=("instruction",), layer=7).run(toy, progress=False)
    says = toy.run("The color of the food:")[0, -1].argmax()
    assert told.top("food-color", "instruction")[0] == toy.tokenizer.decode([int(says)])
    assert set(told.tables["top_1"]["count"]) == {1}


def test_figures_text_and_files(result, tmp_path):
    figures = result.plots()
    for figure in figures.values():
        assert len(figure.data) == 2 and list(figure.data[0].x) == ["color", "capital"]
        assert list(figure.layout.yaxis.ticktext)[:2] == ["embed", "0"]
    assert plain_lines(figures["decodings"].data[0].text[5][0]) == ["color"]
    again = Result.load(result.save(tmp_path))
    assert repr(again) == repr(result) and "color, " in repr(result)


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"k": 0}, "k"), ({"runs": 0}, "runs"), ({"sources": ()}, "sources"),
     ({"sources": ("words",)}, "sources"), ({"tasks": ()}, "tasks")],
)  # fmt: skip
def test_wrong_fields_are_named(fields, name):
    with pytest.raises(RecipeError, match=rf"TopDecodings\.{name}"):
        TopDecodings(**fields)


def test_what_the_model_cannot_do_is_said_before_any_run(toy, load, no_forward):
    no_forward(toy)
    with pytest.raises(RecipeError, match=r"TopDecodings\.layer is 9; toy-llava has blocks 0\.\.7"):
        TopDecodings(layer=9).run(toy)
    with pytest.raises(RecipeError, match=r"TopDecodings\.sources asks for some"):
        TopDecodings().run(load("llama"))
