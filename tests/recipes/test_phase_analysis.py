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
    recipe = PhaseAnalysis("country-capital", modality="image", runs=RUNS, forms=False)
    return recipe.run(toy, progress=False)


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
    assert list(result.table["layer"]) == ["embed", *range(toy.cfg.n_layers)]
    assert list(dict.fromkeys(result.tables["runs"]["layer"])) == list(result.table["layer"])
    assert len(result.phases) == toy.cfg.n_layers + 1


def test_probabilities_sum_to_one_and_bands_are_quartiles(result):
    runs = result.tables["runs"]
    assert runs[["input", "task", "answer"]].sum(axis=1).to_numpy() == pytest.approx(1)
    last = runs[runs["layer"] == result.table["layer"].iloc[-1]]["task"]
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
    first = found.tables["runs"].query("layer == 'embed'")
    assert set(first["top_token"]) == {found.values["input_token"]}
    assert set(first["input_rank"]) == {0}
    chosen = PhaseAnalysis("food-color", runs=2, input_token="Paris").run(toy, progress=False)
    assert chosen.values["input_token"] == "Paris"


def test_boundaries_follow_the_phases():
    import pandas as pd

    from vlm_lens.recipes.parts.phase_result import phases

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
    assert result.boundaries["low"].tolist() == [2, 6] == result.boundaries["high"].tolist()
    assert result.values["share"] == {"input": 0.25, "task": 0.375, "answer": 0.375}


def test_boundaries_are_as_sure_as_runs_agree():
    import pandas as pd

    from vlm_lens.recipes.parts.phase_result import phases

    # of 40 runs, 30 turn to the task at layer 1, and 10 at layer 2; no run comes to the answer
    rows = [
        {"run": run, "layer": layer, "input": 1.0 - turned, "task": 1.0 * turned, "answer": 0.0}
        | {f"{p}_rank": 0 for p in ("input", "task", "answer")}
        for run in range(40)
        for layer in range(4)
        for turned in [layer >= (1 if run < 30 else 2)]
    ]
    values = {"task": "t", "modality": "text", "input_token": ":", "task_token": "w"}
    edges = phases(pd.DataFrame(rows), values, skipped=0).boundaries.set_index("boundary")
    # the mean turns at layer 1 where more than 20 of 40 draws are of the 30: nearly always
    assert edges.loc["task_from", ["layer", "low", "high", "found"]].tolist() == [1, 1, 1, 1]
    assert pd.isna(edges.loc["answer_from", "layer"]) and edges.loc["answer_from", "found"] == 0
    even = pd.DataFrame([r | {"run": r["run"] - 10} for r in rows if r["run"] >= 10])  # 20 and 10
    even = even[(even["run"] < 11) | (even["run"] >= 20)]  # 11 and 10
    edges = phases(even, values, skipped=0).boundaries.set_index("boundary")
    assert edges.loc["task_from", ["layer", "low", "high"]].tolist() == [1, 1, 2]


def test_the_input_token_is_found_on_any_model(model):
    """Plain: the delimiter's embedding, the final norm, the output layer."""
    from vlm_lens.recipes.phase_analysis import delimiter_decoding

    hf = model.hf_model
    inner = hf.model.language_model if hasattr(hf.model, "language_model") else hf.model
    for text in ("Q:Peru\nA:", "The color of the food:"):
        last = torch.tensor(model.tokenizer(text)["input_ids"][-1:])
        with torch.no_grad():
            embedded = hf.get_input_embeddings()(last)
            expected = int(hf.get_output_embeddings()(inner.norm(embedded)).argmax())
        assert delimiter_decoding(model, text) == expected


def test_an_instruction_is_paired_with_every_answer(toy):
    told = PhaseAnalysis("food-color", modality="instruction", runs=6, forms=False)
    told = told.run(toy, progress=False)
    assert told.values["runs"] == 6
    runs = told.tables["runs"].query("layer == 7")
    assert runs["task_rank"].nunique() == 1 and runs["answer_rank"].nunique() > 1
    logits = toy.run("The color of the food:")[0, -1]
    answers = [toy.to_first_token(row.output) for row in Task.load("food-color").test[:6]]
    color, colon = toy.to_first_token("color"), toy.to_single_token(":")
    expected = [logits[[colon, color, a]].softmax(-1)[2].item() for a in answers]
    assert runs["answer"].tolist() == pytest.approx(expected, rel=1e-4)
    assert "answers" in told.plot().layout.title.text


def test_a_grid_of_tasks_and_modalities(result, toy):
    from vlm_lens.figures.phases import phase_grid

    text = PhaseAnalysis("food-color", runs=2).run(toy, progress=False)
    figure = phase_grid([result.curves, text.curves])
    said = [a.text for a in figure.layout.annotations]
    assert said == ["image examples", "text examples", "country-capital", "food-color"]
    assert len(figure.data) == 18


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
    assert len(figure.data) == 9 + 2 and len(figure.layout.shapes) >= 1  # two boundaries
    assert list(figure.layout.xaxis.ticktext)[:3] == ["embed", "0", "1"]
    again = Result.load(result.save(tmp_path))
    assert type(again) is type(result) and repr(again) == repr(result)
    assert list(again.tables["runs"]["layer"]) == list(result.tables["runs"]["layer"])
    assert again.task_from == result.task_from and type(again.task_from) is int
    assert {p.name for p in tmp_path.glob("*.html")} == {"phases.html", "ranks.html"}


def test_forms_are_summed(load):
    """Against a softmax over the whole vocabulary, computed with plain transformers."""
    vlm = load("qwen2")
    task = Task.load("country-capital")
    found = PhaseAnalysis(task, runs=3, n_examples=1, task_token=("capital", "country")).run(
        vlm, progress=False
    )
    tokens = found.values["task_tokens"]
    assert {" capital", " country"} <= set(tokens) and len(tokens) == len(set(tokens))
    assert all(repr(token) in found.notes[1] for token in tokens)
    first = found.tables["runs"].query("run == run.min()")
    run = int(first["run"].iloc[0])
    prompt = task.example_sets("text", seed=1, n=1, split="test")[run]
    ids = torch.tensor([vlm.to_tokens(prompt.text)])
    ids = torch.cat([torch.tensor([[vlm.tokenizer.bos_token_id]]), ids], 1)
    with torch.no_grad():
        out = vlm.hf_model(ids, output_hidden_states=True)
        inner = vlm.hf_model.model
        stream = [*out.hidden_states[:-1]]
        logits = [vlm.hf_model.lm_head(inner.norm(h[0, -1])) for h in stream]
        probs = [one.double().softmax(-1) for one in [*logits, out.logits[0, -1]]]
    answer = task.test[run].output
    spaced = [i for i in vlm.to_tokens(f" {answer}") if vlm.to_string([i]).strip()]
    for_answer = {vlm.to_tokens(f"A:{answer}")[2]}
    if vlm.to_string(spaced[:1]).strip().startswith(vlm.to_string(list(for_answer)).strip()):
        for_answer.add(spaced[0])
    for_input = int(probs[0].argmax())
    for_task = {vlm.to_tokens(t)[0] for t in tokens} - for_answer - {for_input}
    for layer, one in enumerate(probs):
        sums = [one[sorted(ids)].sum() for ids in ({for_input}, for_task, for_answer)]
        expected = [float(s / sum(sums)) for s in sums]
        got = first[["input", "task", "answer"]].iloc[layer].tolist()
        assert got == pytest.approx(expected, rel=1e-3, abs=1e-6)
        ranks = [int((one > one[i]).sum()) for i in for_task]
        assert first["task_rank"].iloc[layer] == min(ranks)
