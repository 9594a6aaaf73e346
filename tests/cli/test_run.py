"""`vlm-lens run`."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from vlm_lens.cli import app


def test_run_loads_the_model_as_asked(tmp_path):
    recipe = tmp_path / "one.yaml"
    recipe.write_text("recipe: TopDecodings\ntasks: food-color\nsources: [instruction]\n")
    command = ["run", str(recipe), "--model", "toy-llava", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--dtype", "bfloat16", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "out" / "provenance.json").read_text())["provenance"]["model"]
    assert about["dtype"] == "bfloat16" and about["device"] == "cpu"
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "TopDecodings on toy-llava" in report and "--model toy-llava" in report
    assert "--dtype bfloat16 --device cpu" in report
