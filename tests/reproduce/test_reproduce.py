"""`vlm-lens reproduce` end to end on tiny random models; numbers mean nothing, every path runs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from html import escape
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from vlm_lens.cli import app
from vlm_lens.reproduce import choose, experiments

TASKS = "country-capital,country-currency"
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def load_script(name: str):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    beyond = ["methods"] if kind == "llava" else []  # once: its search takes long
    said = reproduce(
        "all", *beyond, "--model", checkpoints[kind], *base, "--data", data, "--tasks", TASKS,
        "--seeds", 1, "--out", tmp_path / "out",
    )  # fmt: skip
    folder = tmp_path / "out" / kind
    left = {"table10"} if kind == "llava" else {"table10", "table3", "table11"}  # template, base
    done = {path.parent.name for path in folder.glob("*/numbers.csv")}
    asked = {one.id for one in choose(["all", *beyond])}
    assert done == asked - left, said
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
    written = load_script("paper_numbers").page(tmp_path / "out")
    assert "`table2`" in written and "| Text Examples Patch | " in written


def tables(folder: Path) -> dict[str, str]:
    """Every table and the Markdown report, and provenance without time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix in (".csv", ".md"):
            found[name] = path.read_text(encoding="utf-8")
        elif path.name == "provenance.json":
            about = json.loads(path.read_text(encoding="utf-8"))
            for key in ("date", "seconds"):
                del about["provenance"][key]
            found[name] = json.dumps(about)
    return found


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_files(checkpoints, data, tmp_path):
    """Killed while it runs, then resumed in two processes; beside a run that was left alone."""
    what = ["table2", "figure8", "--model", str(checkpoints["llava"]), "--data", str(data),
            "--tasks", "country-capital", "--seeds", "1"]  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    reproduce(*what, "--out", whole)
    command = [sys.executable, "-m", "vlm_lens", "reproduce", *what, "--out", str(broken)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        runs = broken / "llava" / "runs"
        while running.poll() is None and not any(runs.glob("[!.]*")):
            time.sleep(0.02)
        running.kill()
    assert not (broken / "report.html").exists()
    finished = {path.name for path in runs.glob("[!.]*")}
    assert 0 < len(finished) < 4
    written = {name: (runs / name / "provenance.json").stat().st_mtime_ns for name in finished}
    said = reproduce(*what, "--out", broken, "--jobs", 2)
    assert f"{len(finished)} of 4 runs were finished before" in said
    assert tables(broken) == tables(whole)
    for name, when in written.items():
        assert (runs / name / "provenance.json").stat().st_mtime_ns == when
    assert not list(broken.rglob("*.partial"))


def test_another_model_or_setting_is_refused(checkpoints, data, tmp_path):
    what = ["figure15", "--model", checkpoints["llava"], "--data", data, "--out", tmp_path]
    what += ["--tasks", "country-capital"]
    reproduce(*what, "--seeds", 1)
    before = tables(tmp_path)
    said = reproduce(*what, "--seeds", 2, code=1)
    assert "setup: seeds: 1 there, 2 now" in " ".join(said.split())
    about = tmp_path / "llava" / "about.json"
    other = json.loads(about.read_text()) | {"model: weights": "another"}
    about.write_text(json.dumps(other))
    said = reproduce(*what, "--seeds", 1, code=1)
    assert "model: weights" in said and "another --out" in " ".join(said.split())
    assert tables(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tabel2", "--model", "toy-llava"], "Did you mean 'table2'"),
        (["table2"], "--model toy-llava"),
        (["table2", "--model", "toy-lava"], "Did you mean 'toy-llava'"),
        (["table2", "--model", "toy-vicuna"], "takes no pictures"),
        (["table2", "--model", "toy-llava", "--base", "toy-llava"], "not a language model"),
        (["table2", "--model", "toy-llava", "--tasks", "food-colour"], "'food-color'"),
        (["table2", "--model", "toy-llava", "--tasks", "food-color,food-color"], "twice"),
        (["table2", "--model", "toy-llava", "--data", "./none"], "--data ./none is not a folder"),
        (["table2", "--model", "toy-llava", "--seeds", "0"], "--seeds is 0"),
        (["table2", "--model", "toy-llava", "--dtype", "float17"], "--dtype float17"),
        (["table2", "--model", "toy-llava", "--model", "toy-llava"], "one folder"),
    ],
)
def test_errors_come_before_any_work(arguments, said, tmp_path, monkeypatch):
    from vlm_lens import HookedVLM

    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded although the request was wrong")

    monkeypatch.setattr(HookedVLM, "from_pretrained", refuse)
    shown = reproduce(*arguments, "--out", tmp_path / "out", code=1)
    assert said in " ".join(shown.split()), shown
    assert not (tmp_path / "out").exists()


def test_a_missing_file_of_the_data_is_named(data, tmp_path):
    (tmp_path / "annotations").mkdir()
    shown = reproduce("table2", "--model", "toy-llava", "--data", tmp_path, code=1)
    assert "country-capital_val.json" in "".join(shown.split())


def test_without_ids_the_experiments_are_listed():
    shown = reproduce()
    for name in experiments():
        assert name in shown
    assert "E13" in shown
