"""`vlm-lens demo`."""

from __future__ import annotations

import json

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
