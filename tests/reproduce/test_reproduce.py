"""`vlm-lens reproduce` end to end on tiny random models; numbers mean nothing, every path runs."""

from __future__ import annotations

import json
from html import escape

import pandas as pd
import pytest
from typer.testing import CliRunner

from vlm_lens.cli import app
from vlm_lens.reproduce import experiments

TASKS = "country-capital,country-currency"


def reproduce(*arguments: object, code: int = 0) -> str:
    """Runs the command; its output."""
    done = CliRunner().invoke(
        app, ["reproduce", *map(str, arguments)], env={"COLUMNS": "200"}, catch_exceptions=False
    )
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llava", "idefics2", "fuyu"])
def test_every_experiment_runs_on_the_real_architectures(kind, checkpoints, data, tmp_path):
    base = ["--base", checkpoints["llm"]] if kind == "llava" else []
    said = reproduce(
        "all", "--model", checkpoints[kind], *base, "--data", data, "--tasks", TASKS,
        "--seeds", 1, "--out", tmp_path / "out",
    )  # fmt: skip
    folder = tmp_path / "out" / kind
    left = {"table10"} | (set() if kind == "llava" else {"table3", "table11"})  # no template, base
    done = {path.parent.name for path in folder.glob("*/numbers.csv")}
    assert done == set(experiments()) - left, said
    for name in left:
        assert f"{name}: " in said or f"{name} " in said
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for name in done:
        title = experiments()[name].title
        assert f"## {title}\n" in report and f"<h2>{escape(title)}</h2>" in html
    numbers = pd.read_csv(tmp_path / "out" / "numbers.csv", keep_default_na=False)
    assert set(numbers["experiment"]) <= done and "table2" in set(numbers["experiment"])
    about = json.loads((folder / "about.json").read_text())
    assert about["setup: seeds"] == 1 and about["model: family"] == kind
