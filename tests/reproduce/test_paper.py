"""The paper's numbers: whole, and consistent with each other as printed."""

from __future__ import annotations

import pytest

from vlm_lens.errors import VLMLensError
from vlm_lens.reproduce import paper
from vlm_lens.tasks import PAPER_TASKS


def test_known_numbers_are_found():
    assert paper.lookup("table2", "Idefics2", "Text Examples Patch") == 0.51
    assert paper.lookup("table2", "LLaVA-v1.5", "Image Examples Patch") is None
    assert paper.lookup("table3", "Idefics2", "LLM-VLM", quantity="cosine") == 0.89
    assert paper.lookup("table7", "Idefics2", "Prompting", "one forward pass", "seconds") == 2.2
    with pytest.raises(VLMLensError, match="'table2'"):
        paper.table("tabel2")


def test_means_are_those_of_the_tasks():
    """The printed averages follow from the printed numbers, up to their rounding."""
    numbers = paper.tables().query("quantity == 'accuracy' and table != 'table3'")
    for key, mine in numbers.groupby(["table", "model", "method"]):
        by_task = mine.set_index("task")["value"]
        if "mean" in by_task:
            assert by_task.drop("mean").mean() == pytest.approx(by_task["mean"], abs=0.011), key


def test_the_same_experiment_has_the_same_numbers_in_every_table():
    for model in paper.MODELS:
        for task in (*PAPER_TASKS, "mean"):
            main = paper.lookup("table2", model, "Text Examples Patch", task)
            assert main == paper.lookup("table12", model, "text -> image", task)
            if model != "Mantis-Fuyu":
                assert main == paper.lookup("table11", model, "VLM-VLM", task)


def test_phase_curves_are_shares():
    curves = paper.phase_curves()
    assert len(curves) == 6 * 2 * 33
    assert set(curves["task"]) == set(PAPER_TASKS)
    sums = curves[["input", "task_word", "answer"]].sum(axis=1)
    assert sums.between(0.97, 1.03).all()


def test_decodings_and_outputs_are_there():
    tokens = paper.decodings()
    assert len(tokens.query("source == 'table6'")) == 60
    assert len(tokens.query("source == 'table13'")) == 30
    five = tokens.query("source == 'table6' and task == 'country-capital'")
    assert list(five["token"])[:2] == ["headquarters", "cities"] and "" in list(five["token"])
    assert set(paper.outputs()["figure"]) == {"figure4", "figure7", "figure11"}


def test_every_file_has_its_source():
    about = paper.source()
    assert about["arxiv"] == "2410.22330"
    assert set(about["files"]) == {f"{n}.csv" for n in
                                   ("tables", "decodings", "phase_curves", "outputs")}  # fmt: skip
    assert "digitised" in about["files"]["phase_curves.csv"]
