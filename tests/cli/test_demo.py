"""`vlm-lens demo`."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from vlm_lens.cli import app

run = CliRunner().invoke


@pytest.mark.slow
def test_demo_writes_report_tables_and_provenance(tmp_path):
    shown = run(app, ["demo", "--out", str(tmp_path), "--seeds", "1"], env={"COLUMNS": "160"})
    assert shown.exit_code == 0, shown.output
    for word in ("No Context", "Prompt", "Patch", "Random vector", "mean", "embed", "report"):
        assert word in shown.output
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
    for folder in ("transfer", "phases-text", "phases-image"):
        about = json.loads((tmp_path / folder / "provenance.json").read_text())
        assert about["provenance"]["model"]["name"] == "toy-llava"
    assert (tmp_path / "transfer" / "layers.csv").exists()


def test_a_language_model_is_asked_in_text_on_few_rows(tmp_path):
    options = ["--tasks", "food-color", "--rows", "8", "--seeds", "1", "--out", str(tmp_path)]
    shown = run(app, ["demo", "--model", "toy-vicuna", *options], env={"COLUMNS": "160"})
    assert shown.exit_code == 0, shown.output
    assert "text -> text" in shown.output and "8 test rows, 1 draw of examples" in shown.output
    assert not (tmp_path / "phases-image").exists()
    table = pd.read_csv(tmp_path / "transfer" / "table.csv")
    assert set(table["queries"]) == {8}
    assert "two modalities" not in (tmp_path / "report.html").read_text()


def test_a_wrong_task_is_refused_before_a_model_is_loaded(tmp_path):
    options = ["demo", "--model", "no-such-model", "--tasks", "food-colour", "--out", str(tmp_path)]
    shown = run(app, options)
    assert shown.exit_code and "food-color" in shown.output
