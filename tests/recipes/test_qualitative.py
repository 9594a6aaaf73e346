"""Outputs, recomputed with plain transformers and a plain torch hook."""

from __future__ import annotations

import pytest
import torch

from recipes.plain import QUERY, Plain, few_shot, small
from vlm_lens.recipes import Qualitative, RecipeError, Result

LAYER, TOKENS = 4, 3
TASK = small("animal-young")


@pytest.fixture(scope="module")
def result(toy):
    recipe = Qualitative(TASK, rows=2, layer=LAYER, max_new_tokens=TOKENS)
    return recipe.run(toy, progress=False)


def generated(plain, text, picture, vector=None):
    """Greedy, the whole sequence anew for each token, patched at the prompt's last position."""
    inputs = dict(plain.inputs(text, [picture]))
    last, ids = inputs["input_ids"].shape[1] - 1, []
    ends = plain.model.generation_config.eos_token_id

    def hook(module, args, output):
        output = output.clone()
        output[:, last] = vector
        return output

    for _ in range(TOKENS):
        handle = plain.blocks[LAYER].register_forward_hook(hook) if vector is not None else None
        with torch.no_grad():
            token = int(plain.model(**inputs).logits[0, -1].argmax())
        if handle is not None:
            handle.remove()
        ids.append(token)
        if token in ([ends] if isinstance(ends, int) else ends):
            break
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return plain.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_outputs_equal_plain_transformers(result):
    plain = Plain("toy-llava")
    vector = plain.vector(few_shot(TASK.validation, 1))[LAYER]
    shown = few_shot(TASK.test, 1, QUERY)
    for i, row in enumerate(TASK.test[:2]):
        mine = result.table[result.table["input"] == row.input].set_index("method")
        assert mine.loc["No Context", "output"] == generated(plain, QUERY, row.image)
        assert mine.loc["Prompt", "output"] == generated(plain, shown[i], row.image)
        assert mine.loc["Patch", "output"] == generated(plain, QUERY, row.image, vector)
        assert mine.loc["Prompt", "prompt"] == shown[i]


def test_right_is_the_prefix_rule_on_the_first_line(result):
    for row in result.table.itertuples():
        said, answers = row.output.partition("\n")[0].strip(), TASK[row.input].answers
        assert row.right == any(
            said and (said.startswith(a) or a.startswith(said)) for a in answers
        )


def test_rows_are_chosen_by_name_and_a_question_follows_the_input(toy):
    name = TASK.test[3].input
    recipe = Qualitative(
        TASK, source="instruction", rows=(name,), question="What is this?", layer=LAYER,
        max_new_tokens=1,
    )  # fmt: skip
    asked = recipe.run(toy, progress=False)
    assert asked.table["input"].tolist() == [name] * 3
    prompts = asked.table.set_index("method")["prompt"]
    assert prompts["No Context"] == prompts["Patch"] == "Q:<image>What is this?\nA:"
    assert prompts["Prompt"] == f"{TASK.instruction}\n\nQ:<image>What is this?\nA:"
    text = Qualitative(TASK, query="text", question="What?", rows=1)
    row = TASK.test[0]
    assert text.asked(TASK.query(row, "text"), row).text == f"Q:{row.input} What?\nA:"


def test_the_page_and_the_figure_show_pictures_and_outputs(result, tmp_path):
    html = result._repr_html_()
    assert html.count("data:image/png;base64,") == 2
    assert html.count("✓") == int(result.table["right"].sum())
    figure = result.plot()
    assert len(figure.layout.images) == 2
    said = " ".join(a.text for a in figure.layout.annotations)
    assert "Patch" in said and TASK.test[0].output in said
    again = Result.load(result.save(tmp_path))
    assert again._repr_html_() == html and repr(again) == repr(result)
    assert (tmp_path / "outputs.html").exists()


def test_what_a_model_says_is_no_markup(result):
    table = result.table.assign(output="<b>x</b>\n<i>")
    shown = type(result)(table, result.tables, result.values)
    assert "<b>x" not in shown._repr_html_() and "&lt;b&gt;x" in shown._repr_html_()
    assert all("<b>x" not in a.text for a in shown.plot().layout.annotations)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"rows": 0}, "rows is 0"), ({"rows": ()}, "rows is"), ({"rows": ("Nobody",)}, "'Nobody'"),
     ({"max_new_tokens": 0}, "max_new_tokens is 0"), ({"seed": 0}, "seeds")],
)  # fmt: skip
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(RecipeError, match=message):
        Qualitative("food-color", **fields)


def test_a_model_without_eyes_is_refused_before_any_run(load, no_forward):
    no_forward(load("llama"))
    with pytest.raises(RecipeError, match="takes no pictures"):
        Qualitative().run(load("llama"))
