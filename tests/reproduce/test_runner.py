"""What goes wrong in a run, a comparison or a figure is kept, and nothing else is lost by it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import pandas as pd
import pytest

from vlm_lens.recipes import Recipe
from vlm_lens.reproduce import Comparison, Experiment, Finding, execute, make_plan, write_report


@dataclass(frozen=True)
class Layers(Recipe):
    """The number of blocks, and in which process it was counted."""

    def measure(self, vlm):
        return pd.DataFrame({"layers": [vlm.cfg.n_layers], "process": [os.getpid()]})


@dataclass(frozen=True)
class OutOfMemory(Recipe):
    """Ends as torch ends where memory does."""

    def measure(self, vlm):
        raise RuntimeError("DefaultCPUAllocator: not enough memory")


def experiment(name: str, recipe: Recipe, **changes: object) -> Experiment:
    """An experiment of one run, which is called after it."""
    compare = lambda setup, results: Comparison(findings=(Finding(name, "-", "-", True),))  # noqa: E731
    return replace(
        Experiment(name, name, name, lambda s: {f"run-{name}": recipe}, compare, figures=_none),
        **changes,
    )


def _none(setup, results):
    return []


def _fails(setup, results):
    raise ZeroDivisionError("nothing to divide by")


@pytest.fixture
def plan(checkpoints, data, tmp_path):
    """A plan of one's own experiments on a tiny model."""

    def make(*experiments: Experiment):
        (made,) = make_plan(
            ["figure15"], [str(checkpoints["llava"])], data=data, tasks=["country-capital"],
            seeds=1, out=tmp_path / "out",
        )  # fmt: skip
        runs = {n: r for one in experiments for n, r in one.recipes(made.setup).items()}
        return replace(made, experiments=experiments, runs=runs)

    return make


def test_an_error_that_nobody_foresaw_ends_one_experiment_alone(plan, tmp_path):
    said: list[str] = []
    asked = plan(
        experiment("memory", OutOfMemory()),
        experiment("good", Layers()),
        experiment("uncompared", Layers(), compare=_fails),
        experiment("undrawn", Layers(), figures=_fails),
    )
    outcome = execute(asked, say=said.append)
    assert set(outcome.comparisons) == {"good", "undrawn"}
    assert outcome.failed["memory"].startswith("RuntimeError: DefaultCPUAllocator: not enough")
    assert outcome.failed["uncompared"].startswith("ZeroDivisionError: nothing to divide by")
    assert outcome.undrawn["undrawn"].startswith("ZeroDivisionError")
    for name, kind in (("run-memory", "RuntimeError"), ("uncompared", "ZeroDivisionError")):
        trace = (asked.folder / "errors" / f"{name}.txt").read_text()
        assert trace.startswith("Traceback") and f"{kind}: " in trace
    assert (asked.folder / "undrawn" / "findings.csv").is_file()
    assert any("run-memory: failed: RuntimeError" in line for line in said)


def test_what_is_timed_runs_last_and_in_no_other_process(plan):
    said: list[str] = []
    asked = plan(
        experiment("timed", Layers(), changes=True),
        experiment("one", Layers()),
        experiment("two", Layers()),
    )
    outcome = execute(asked, say=said.append, jobs=1)
    order = [line.split("] ")[1].split(":")[0] for line in said if line.startswith("[")]
    assert order == ["run-one", "run-two", "run-timed"]
    assert outcome.results["run-timed"].table["process"][0] == os.getpid()


def test_the_report_keeps_experiments_that_were_finished_before(checkpoints, data, tmp_path):
    def run(name: str):
        (made,) = make_plan(
            [name], [str(checkpoints["llava"])], data=data, tasks=["country-capital"], seeds=1,
            out=tmp_path,
        )  # fmt: skip
        write_report(tmp_path, [execute(made)])
        return pd.read_csv(tmp_path / "texts.csv")

    first, both = run("figure15"), run("figure4")
    assert set(first["experiment"]) == {"figure15"}
    assert set(both["experiment"]) == {"figure15", "figure4"}
    assert "Figure 15" in (tmp_path / "report.md").read_text()
    again = run("figure15")  # and the other way round, with nothing run
    assert again.equals(both)
