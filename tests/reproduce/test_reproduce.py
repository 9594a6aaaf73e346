"""`vlm-lens reproduce` end to end on tiny random models; numbers mean nothing, every path runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from html import escape
from pathlib import Path

import pandas as pd
import pytest
from browser import WIDTHS
from typer.testing import CliRunner

from scripts.docs import paper_numbers
from vlm_lens.cli import app
from vlm_lens.recipes import TransferResult
from vlm_lens.reproduce import choose, experiments

TASKS = "country-capital,country-currency"


def reproduce(*arguments: object, code: int = 0) -> str:
    """Runs the command; its output."""
    done = CliRunner().invoke(
        app, ["reproduce", *map(str, arguments)], env={"COLUMNS": "200"}, catch_exceptions=False
    )
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture(scope="module")
def everything(checkpoints, data, tmp_path_factory) -> tuple[Path, str]:
    """Every experiment on a tiny LLaVA, once for all tests: the folder and what was said."""
    out = tmp_path_factory.mktemp("everything") / "out"
    said = reproduce(
        "all", "--model", checkpoints["llava"], "--base", checkpoints["llm"],
        "--data", data, "--tasks", TASKS, "--seeds", 1, "--out", out,
    )  # fmt: skip
    return out, said


@pytest.mark.slow
@pytest.mark.parametrize("width", [WIDTHS["phone"], WIDTHS["desktop"]])
def test_the_report_is_read_at_every_width(browser, everything, width):
    with browser.open(everything[0] / "report.html", width=width, dark=width > 600) as page:
        page.wait("document.querySelector('.main-svg')")
        page.js("document.querySelectorAll('details').forEach(d => { d.open = true })")
        page.settle(20)
        assert page.errors == [] and page.fetched == []
        assert page.wider_than_screen <= 0 and page.cut == [] and page.out_of_reach == []
        assert page.narrow_cells == [] and page.faint == [] and page.overlapping == []


@pytest.mark.slow
def test_every_experiment_runs_and_is_reported(everything):
    out, said = everything
    done = {path.parent.name for path in out.glob("llava/*/numbers.csv")}
    asked = {one.id for one in choose(["all"])}
    assert done == asked - {"table10"}, said  # it has no chat template
    assert "table10" in said and "has no chat template" in " ".join(said.split())
    report = (out / "report.md").read_text(encoding="utf-8")
    html = (out / "report.html").read_text(encoding="utf-8")
    for name in done:
        title = experiments()[name].title
        assert f"## {title}\n" in report and f"<h2>{escape(title)}</h2>" in html
    assert not (out / "llava" / "errors").exists()
    about = json.loads((out / "llava" / "manifest.json").read_text())
    assert about["identity"]["number of seeds"] == 1
    assert about["identity"]["base model's weights"] and about["identity"]["processor"]
    written = paper_numbers.page(out)
    assert "`table2`" in written and "| Text Examples Patch | " in written


@pytest.mark.slow
def test_numbers_are_those_of_the_runs_with_every_rule_interval_and_control(everything):
    out, _ = everything
    numbers = pd.read_csv(out / "numbers.csv", keep_default_na=False)
    runs = {"table2": ("transfer-text-image", ", text examples"),
            "table4": ("further-text-image", ", text examples"),
            "table9": ("noisy-instruction", ""),
            "table12": ("transfer-text-image", ", text -> image")}  # fmt: skip
    for name, (run, of) in runs.items():
        table = TransferResult.load(out / "llava" / "runs" / run).table
        mine = numbers[(numbers["experiment"] == name) & (numbers["task"] == "mean")]
        shown = mine.set_index("method")
        for method in ("Wrong task, same domain", "Random vector"):
            means = table[(table["method"] == method) & (table["task"] == "mean")].iloc[0]
            told = shown.loc[f"control{of}: {method}"]
            for column in ("low", "high", "strict", "balanced"):
                assert float(told[column]) == pytest.approx(means[column]), (name, method, column)
            assert float(told["here"]) == pytest.approx(means["accuracy"])
    texts = pd.read_csv(out / "texts.csv", keep_default_na=False)
    said = texts[texts["what"] == "text -> image: block that is patched (0-based)"].iloc[0]
    layer = TransferResult.load(out / "llava" / "runs" / "transfer-text-image").layer
    assert said["here"].startswith(f"{layer} of ") and said["paper"] == "15 of 32"


@pytest.mark.slow
def test_reasons_are_those_of_the_data_at_hand(everything):
    report = (everything[0] / "report.md").read_text(encoding="utf-8")
    for line in ("drawn flags and emoji", "three further tasks of the package",
                 "the shipped pictures", "was shown no questions in words"):  # fmt: skip
        assert line not in report
    assert "listed; the paper patches one block a model" in report


@pytest.mark.slow
def test_other_methods(checkpoints, data, tmp_path):
    what = ["--data", data, "--tasks", "country-capital", "--seeds", 1, "--out", tmp_path]
    reproduce("methods", "--model", checkpoints["llava"], *what)
    numbers = pd.read_csv(tmp_path / "numbers.csv")
    assert {"Patch", "Function vector, added", "Multimodal task vector"} <= set(numbers["method"])
    finding = pd.read_csv(tmp_path / "findings.csv").iloc[0]["here"]
    assert "controls left out" in finding and "andom" not in finding


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["idefics2", "fuyu"])
def test_other_architectures(kind, checkpoints, data, tmp_path):
    ids = ["table2", "figure8", "table3"]
    said = reproduce(
        *ids, "--model", checkpoints[kind], "--data", data, "--tasks", "country-capital",
        "--seeds", 1, "--out", tmp_path,
    )  # fmt: skip
    done = {path.parent.name for path in tmp_path.glob(f"{kind}/*/numbers.csv")}
    assert done == set(ids) - {"table3"}, said  # no base language model is known
    assert "left out: table3" in said


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


def same_but_for_rounding(some: dict[str, str], others: dict[str, str]) -> None:
    """Tables of processes with other numbers of threads, whose sums have another order."""
    assert some.keys() == others.keys()
    for name, text in some.items():
        parts, expected = (re.split(r"(\d+\.\d+(?:e-?\d+)?)", t) for t in (text, others[name]))
        assert parts[::2] == expected[::2], name
        for found, wanted in zip(parts[1::2], expected[1::2], strict=True):
            assert float(found) == pytest.approx(float(wanted), rel=1e-4, abs=1e-6), name


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
        while running.poll() is None and not any(runs.glob("*/provenance.json")):
            time.sleep(0.02)
        running.kill()
    assert not (broken / "report.html").exists()
    finished = {path.parent.name for path in runs.glob("*/provenance.json")}
    assert 0 < len(finished) < 4
    written = {name: (runs / name / "provenance.json").stat().st_mtime_ns for name in finished}
    said = reproduce(*what, "--out", broken, "--jobs", 2)
    assert f"{len(finished)} of 4 runs were finished before" in said
    same_but_for_rounding(tables(broken), tables(whole))
    for name, when in written.items():
        assert (runs / name / "provenance.json").stat().st_mtime_ns == when
    assert not list(broken.rglob("*.partial"))


def test_another_model_or_setting_is_refused(checkpoints, data, tmp_path):
    what = ["figure15", "--model", checkpoints["llava"], "--data", data, "--out", tmp_path]
    what += ["--tasks", "country-capital"]
    reproduce(*what, "--seeds", 1)
    before = tables(tmp_path)
    said = reproduce(*what, "--seeds", 2, code=1)
    assert "another number of seeds (1 there, 2 now)" in " ".join(said.split())
    about = tmp_path / "llava" / "manifest.json"
    other = json.loads(about.read_text())
    other["identity"]["weights"] = "0" * 16
    about.write_text(json.dumps(other))
    said = reproduce(*what, "--seeds", 1, code=1)
    assert "with another weights: give another folder" in " ".join(said.split())
    assert tables(tmp_path) == before


def test_models_that_the_report_would_lose_are_named(tmp_path):
    (tmp_path / "toy-fuyu").mkdir()
    (tmp_path / "toy-fuyu" / "manifest.json").write_text("{}")
    said = reproduce("table2", "--model", "toy-llava", "--out", tmp_path, code=1)
    assert "results of toy-fuyu too" in " ".join(said.split())


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
        (["table2", "--model", "toy-llava", "--load-in-4bit", "--device", "cpu"], "--load-in-4bit"),
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
