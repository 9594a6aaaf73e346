"""Runs what is planned, keeps what is finished, and sets it beside the paper."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pandas as pd

from vlm_lens.errors import VLMLensError
from vlm_lens.reproduce.experiment import Comparison, Experiment
from vlm_lens.reproduce.plan import ModelPlan
from vlm_lens.reproduce.store import Store, with_partial

if TYPE_CHECKING:
    from vlm_lens.recipes import Recipe, Result
    from vlm_lens.reproduce.setup import Setup

__all__ = ["Outcome", "execute"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a model's plan.

    Attributes:
        plan: The plan.
        comparisons: By experiment.
        results: By run.
        skipped: Experiments that the model cannot have, with the reason.
        failed: Experiments of which a run ended with an error, with the message.
    """

    plan: ModelPlan
    comparisons: Mapping[str, Comparison]
    results: Mapping[str, Result]
    skipped: Mapping[str, str]
    failed: Mapping[str, str]

    def of(self, experiment: Experiment) -> dict[str, Result]:
        """An experiment's own runs."""
        return {name: self.results[name] for name in experiment.recipes(self.plan.setup)}


def execute(
    plan: ModelPlan,
    *,
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
    jobs: int = 1,
    **options: Any,
) -> Outcome:
    """Runs a model's recipes; those that are finished in its folder are not run again.

    Args:
        plan: What to run.
        say: Called with a line for each run.
        progress: Whether recipes show progress bars; not with several jobs.
        jobs: How many runs at once, each in a process of its own with the model loaded.
        **options: Passed to `HookedVLM.from_pretrained`: `dtype`, `device`, ...

    Returns:
        The results beside the paper's numbers.

    Raises:
        VLMLensError: The model cannot be loaded, or its folder belongs to something else.
    """
    from vlm_lens.model import HookedVLM

    vlm = HookedVLM.from_pretrained(plan.setup.model, **options)
    store = Store(plan.folder, plan.setup, vlm)
    skipped = dict(plan.skipped)
    for one in plan.experiments:
        reason = lacking(one, vlm)
        if reason:
            skipped[one.id] = reason
    experiments = [one for one in plan.experiments if one.id not in skipped]
    needed = {name for one in experiments for name in one.recipes(plan.setup)}
    runs = {name: recipe for name, recipe in plan.runs.items() if name in needed}
    todo, errors = _check(runs, store, vlm, say)
    work = (
        _in_processes(todo, plan, options, jobs)
        if jobs > 1 and len(todo) > 1
        else ((name, *run_one(name, todo[name], vlm, store, progress)) for name in todo)
    )
    for i, (name, seconds, error) in enumerate(work, start=1):
        if error:
            errors[name] = error
        said = f"failed: {error}" if error else f"{seconds:.1f} s"
        say(f"[{i}/{len(todo)}] {name}: {said}")
    results = {name: store.load(name, recipe) for name, recipe in runs.items()
               if name not in errors}  # fmt: skip
    comparisons, failed = {}, {}
    for one in experiments:
        wrong = [errors[name] for name in one.recipes(plan.setup) if name in errors]
        if wrong:
            failed[one.id] = wrong[0]
            continue
        mine = {name: results[name] for name in one.recipes(plan.setup)}
        comparisons[one.id] = one.compare(plan.setup, mine)
        _save(plan.folder / one.id, one, plan, mine, comparisons[one.id])
    return Outcome(plan, comparisons, results, skipped, failed)


def lacking(experiment: Experiment, vlm: Any) -> str:
    """What the loaded model lacks for an experiment; empty if nothing."""
    if "chat template" in experiment.needs:
        holders = (vlm.processor, vlm.tokenizer)
        if not any(getattr(one, "chat_template", None) for one in holders):
            return f"{vlm.name} has no chat template of its own"
    return ""


def _check(
    runs: Mapping[str, Recipe], store: Store, vlm: Any, say: Callable[[str], None]
) -> tuple[dict[str, Recipe], dict[str, str]]:
    """What is still to run, and what this model cannot run: before the first takes its hours."""
    todo, errors = {}, {}
    for name, recipe in runs.items():
        try:
            recipe.validate_for(vlm)
        except VLMLensError as error:
            errors[name] = str(error)
            say(f"{name}: cannot be done: {error}")
            continue
        if store.load(name, recipe) is None:
            todo[name] = recipe
    if len(todo) + len(errors) < len(runs):
        say(f"{len(runs) - len(todo) - len(errors)} of {len(runs)} runs were finished before")
    return todo, errors


def run_one(name: str, recipe: Recipe, vlm: Any, store: Store, progress: bool) -> tuple[float, str]:
    """Runs and saves one recipe: the seconds it took, and what went wrong, if anything."""
    clock = perf_counter()
    try:
        store.save(name, recipe.run(vlm, progress=progress))
    except VLMLensError as error:
        return perf_counter() - clock, str(error)
    return perf_counter() - clock, ""


# ---------------------------------------------------------------------- several at once

_WORKER: dict[str, Any] = {}


def _in_processes(
    runs: Mapping[str, Recipe], plan: ModelPlan, options: Mapping[str, Any], jobs: int
) -> Iterator[tuple[str, float, str]]:
    """Runs recipes in processes that each hold the model, in the order in which they finish."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    start = (plan.setup, plan.folder, dict(options))
    with ProcessPoolExecutor(
        min(jobs, len(runs)), context, initializer=_start_worker, initargs=start
    ) as pool:
        waiting = {pool.submit(_work, name, recipe): name for name, recipe in runs.items()}
        try:
            for done in as_completed(waiting):
                yield waiting[done], *done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(setup: Setup, folder: Path, options: Mapping[str, Any]) -> None:
    import signal

    import torch
    from transformers.utils import logging

    from vlm_lens.model import HookedVLM

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    vlm = HookedVLM.from_pretrained(setup.model, **options)
    _WORKER.update(vlm=vlm, store=Store(folder, setup, vlm))


def _end_with_parent() -> None:
    """A worker whose parent was killed has nobody to work for."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _work(name: str, recipe: Recipe) -> tuple[float, str]:
    return run_one(name, recipe, _WORKER["vlm"], _WORKER["store"], progress=False)


# ---------------------------------------------------------------------- files


def _save(
    folder: Path, experiment: Experiment, plan: ModelPlan, results: Mapping[str, Result],
    comparison: Comparison,
) -> None:  # fmt: skip
    def write(to: Path) -> None:
        comparison.numbers.to_csv(to / "numbers.csv", index=False)
        comparison.texts.to_csv(to / "texts.csv", index=False)
        findings_table([comparison]).to_csv(to / "findings.csv", index=False)
        for i, figure in enumerate(experiment.figures(plan.setup, results), start=1):
            figure.write_html(to / f"figure{i}.html", include_plotlyjs="../../plotly.min.js")

    with_partial(folder, write)


def findings_table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """The paper's statements, one a row."""
    rows = [vars(finding) for one in comparisons for finding in one.findings]
    return pd.DataFrame(rows, columns=["statement", "paper", "here", "holds"])
