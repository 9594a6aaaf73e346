"""Phase curves, recomputed with plain transformers."""

from __future__ import annotations

import pytest
import torch

from vlm_lens import zoo
from vlm_lens.recipes import PhaseAnalysis, RecipeError, Result
from vlm_lens.tasks import Task

RUNS = 5


@pytest.fixture(scope="module")
def result(toy):
    return PhaseAnalysis("country-capital", modality="image", runs=RUNS).run(toy, progress=False)


def test_points_of_the_curve_equal_plain_transformers(result):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    where = zoo.path("toy-llava")
    model = AutoModelForImageTextToText.from_pretrained(where).eval()
    processor = AutoProcessor.from_pretrained(where)
    task = Task.load("country-capital")
    prompts = task.example_sets("image", seed=1, split="test")[:RUNS]

    def first(text: str) -> int:
        return processor.tokenizer(text, add_special_tokens=False)["input_ids"][0]

    norm, head = model.model.language_model.norm, model.lm_head
    found = []
    for prompt, row in zip(prompts, task.test, strict=False):
        inputs = processor(text=prompt.text, images=list(prompt.images), return_tensors="pt")
        with torch.no_grad():
            out = model(**inputs, output_hidden_states=True)
            # the last of Hugging Face's hidden states is normed already
            logits = [head(norm(h[0, -1])) for h in out.hidden_states[:-1]] + [out.logits[0, -1]]
        colon = int(logits[0].argmax())
        ids = [colon, first("capital"), first(row.output)]
        found.append(torch.stack([one[ids].double().softmax(-1) for one in logits]))
    mean = torch.stack(found).mean(0)
    got = torch.tensor(result.table[["input", "task", "answer"]].to_numpy())
    torch.testing.assert_close(got, mean, atol=1e-5, rtol=1e-4)


def test_layers_are_the_embedding_and_every_block(result, toy):
    assert len(result.table) == toy.cfg.n_layers + 1
    assert list(result.table["where"][:2]) == ["embedding", "block 0"]
    assert result.table["where"].iloc[-1] == f"block {toy.cfg.n_layers - 1}"
    assert len(result.phases) == toy.cfg.n_layers + 1


def test_probabilities_sum_to_one_and_bands_are_quartiles(result):
    runs = result.tables["runs"]
    assert runs[["input", "task", "answer"]].sum(axis=1).to_numpy() == pytest.approx(1)
    last = runs[runs["layer"] == runs["layer"].max()]["task"]
    assert result.table["task_low"].iloc[-1] == pytest.approx(last.quantile(0.25))
    assert result.table["task_high"].iloc[-1] == pytest.approx(last.quantile(0.75))
    assert runs["run"].nunique() == RUNS


def test_the_embedding_is_the_same_for_text_and_pictures(result, toy):
    text = PhaseAnalysis("country-capital", modality="text", runs=RUNS).run(toy, progress=False)
    columns = ["input", "task", "answer"]
    assert text.table.loc[0, columns].tolist() == pytest.approx(
        result.table.loc[0, columns].tolist(), abs=1e-6
    )
    assert text.values["input_token"] == result.values["input_token"]


def test_the_input_token_is_what_the_delimiter_decodes_to_and_can_be_set(toy):
    found = PhaseAnalysis("food-color", runs=2).run(toy, progress=False)
    first = found.tables["runs"].query("layer == 0")
    assert set(first["top_token"]) == {found.values["input_token"]}
    assert set(first["input_rank"]) == {0}
    chosen = PhaseAnalysis("food-color", runs=2, input_token="Paris").run(toy, progress=False)
    assert chosen.values["input_token"] == "Paris"


def test_boundaries_follow_the_phases():
    import pandas as pd

    from vlm_lens.recipes.phase_analysis import phases

    order = "IITTATAA"
    columns = {"I": "input", "T": "task", "A": "answer"}
    rows = []
    for layer, letter in enumerate(order):
        row = {"run": 0, "layer": layer, "input": 0.1, "task": 0.1, "answer": 0.1}
        row |= {"input_rank": 5, "task_rank": 5, "answer_rank": 5, columns[letter]: 0.8}
        rows.append(row)
    values = {"task": "t", "modality": "text", "input_token": ":", "task_token": "w"}
    result = phases(pd.DataFrame(rows), values, skipped=0)
    assert (result.phases, result.task_from, result.answer_from) == (order, 2, 6)
    assert result.values["share"] == {"input": 0.25, "task": 0.375, "answer": 0.375}


def test_wrong_fields_and_models_are_named(load):
    with pytest.raises(RecipeError, match=r"PhaseAnalysis\.modality"):
        PhaseAnalysis("country-capital", modality="picture")
    with pytest.raises(RecipeError, match=r"PhaseAnalysis\.runs"):
        PhaseAnalysis("country-capital", runs=0)
    with pytest.raises(ValueError, match="country-capital"):
        PhaseAnalysis("country-capitol")
    with pytest.raises(RecipeError, match="takes no pictures"):
        PhaseAnalysis("country-capital", modality="image").run(load("llama"))


def test_figure_and_files(result, tmp_path):
    figure = result.plot()
    assert len(figure.data) == 9 and len(figure.layout.shapes) >= 1
    assert "embedding" in figure.layout.xaxis.title.text
    assert type(Result.load(result.save(tmp_path))) is type(result)
