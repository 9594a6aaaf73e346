"""Runs what is planned, keeps what is finished, and sets it beside the paper."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from vlm_lens.distributed import Loky, Ray, as_place
from vlm_lens.errors import VLMLensError
from vlm_lens.figures.write import write_figure
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.reproduce.experiment import Comparison, Experiment
from vlm_lens.reproduce.experiments import experiments as known_experiments
from vlm_lens.reproduce.plan import ModelPlan
from vlm_lens.reproduce.resized import remember_resized
from vlm_lens.reproduce.setup import ReproduceError
from vlm_lens.reproduce.store import Store
from vlm_lens.reproduce.workers import kept_error, run_on, run_one
from vlm_lens.storage.files import written_together

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vlm_lens.recipes import Recipe, Result

__all__ = ["Outcome", "execute"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a model's plan.

    Attributes:
        plan: The plan.
        comparisons: By experiment; those that are finished in the folder are among them, also
            if the plan does not ask for them.
        results: By run.
        skipped: Experiments that the model cannot have, with the reason.
        failed: Experiments of which a run, or the comparison, ended with an error, with the
            message.
        figures: What is drawn of each experiment.
        undrawn: Experiments whose figures ended with an error, with the message.
    """

    plan: ModelPlan
    comparisons: dict[str, Comparison]
    results: dict[str, Result]
    skipped: dict[str, str]
    failed: dict[str, str]
    figures: dict[str, list[go.Figure]] = field(default_factory=dict)
    undrawn: dict[str, str] = field(default_factory=dict)


def execute(
    plan: ModelPlan,
    *,
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
    jobs: int | None = None,
    on: Any = None,
    **options: Any,
) -> Outcome:
    """Runs a model's recipes; those that are finished in its folder are not run again.

    Args:
        plan: What to run.
        say: Called with a line for each run.
        progress: Whether recipes show progress bars; not with several jobs.
        jobs: How many runs at once, each in a process with the model; one, in this process, by
            default, and on Ray as many as it has room for.
        on: Where: `"loky"`, `"ray"`, a cluster's address; see `HookedVLM.sweep`.
        **options: Passed to `HookedVLM.from_pretrained`: `dtype`, `device`, ...

    Returns:
        The results beside the paper's numbers.

    Raises:
        VLMLensError: The model cannot be loaded, or its folder belongs to something else.
    """
    vlm = HookedVLM.from_pretrained(plan.setup.model, **options)
    remember_resized(vlm.processor)
    with Store(plan.folder, plan.setup, vlm) as store:
        return _execute(plan, store, vlm, say, progress, _place(vlm, jobs, on))


def _place(vlm: HookedVLM, jobs: int | None, on: Any) -> Loky | Ray | None:
    """Where several runs at once are made; None for one after the other, here."""
    if on is None:
        return Loky(jobs) if jobs is not None and jobs > 1 else None
    place = as_place(on)
    place = place if jobs is None else replace(place, workers=jobs)
    if isinstance(place, Ray) and getattr(vlm.hf_model, "hf_quantizer", None) is not None:
        return replace(place, load=True)
    return place


def _execute(
    plan: ModelPlan, store: Store, vlm: HookedVLM, say: Callable[[str], None], progress: bool,
    place: Loky | Ray | None,
) -> Outcome:  # fmt: skip
    """As `execute`, on a loaded model, in its folder."""
    skipped = dict(plan.skipped)
    for one in plan.experiments:
        reason = lacking(one, vlm)
        if reason:
            skipped[one.id] = reason
    experiments = [one for one in plan.experiments if one.id not in skipped]
    needed = {name for one in experiments for name in one.recipes(plan.setup)}
    runs = {name: recipe for name, recipe in plan.runs.items() if name in needed}
    todo, errors = _check(runs, store, vlm, say)
    work = _work(todo, plan, store, vlm, progress, place)
    for i, (name, seconds, error) in enumerate(work, start=1):
        if error:
            errors[name] = error
        said = f"failed: {error}" if error else f"{seconds:.1f} s"
        say(f"[{i}/{len(todo)}] {name}: {said}")
    results = {name: store.load(name, recipe) for name, recipe in runs.items()
               if name not in errors}  # fmt: skip
    failed = {}
    for one in experiments:
        wrong = [errors[name] for name in one.recipes(plan.setup) if name in errors]
        if wrong:
            failed[one.id] = wrong[0]
    before = _finished_before(plan, store, say)
    results |= {name: result for found in before.values() for name, result in found.items()}
    outcome = Outcome(plan, {}, results, skipped, failed, {}, {})
    order = list(known_experiments())
    done = [*(one for one in experiments if one.id not in failed), *before]
    for one in sorted(done, key=lambda e: order.index(e.id) if e.id in order else len(order)):
        _compare(one, outcome, say)
    return outcome


def _work(
    todo: Mapping[str, Recipe],
    plan: ModelPlan,
    store: Store,
    vlm: HookedVLM,
    progress: bool,
    place: Loky | Ray | None,
) -> Iterator[tuple[str, float, str]]:
    """The runs, several at once where asked; what is timed runs alone, after the others."""
    timed = {n for one in plan.experiments if one.changes for n in one.recipes(plan.setup)}
    shared = {name: recipe for name, recipe in todo.items() if name not in timed}
    here = [name for name in todo if name in timed]
    if place is not None and len(shared) > 1:
        yield from run_on(shared, vlm, store, place)
    else:
        here = [*shared, *here]
    for name in here:
        yield name, *run_one(name, todo[name], vlm, store, progress)


def _finished_before(
    plan: ModelPlan, store: Store, say: Callable[[str], None]
) -> dict[Experiment, dict[str, Result]]:
    """Experiments that are not asked for now and stand finished in the folder, with their runs."""
    found: dict[Experiment, dict[str, Result]] = {}
    for one in known_experiments().values():
        if one in plan.experiments or not (plan.folder / one.id).is_dir():
            continue
        try:
            results = {n: store.load(n, recipe) for n, recipe in one.recipes(plan.setup).items()}
        except ReproduceError as error:
            say(f"{one.id}, finished before, is left out of the report: {error}")
            continue
        if None not in results.values():
            found[one] = results
    return found


def _compare(one: Experiment, outcome: Outcome, say: Callable[[str], None]) -> None:
    """Sets an experiment beside the paper, writes that, and adds it to the outcome."""
    setup, folder = outcome.plan.setup, outcome.plan.folder
    results = {name: outcome.results[name] for name in one.recipes(setup)}
    try:
        comparison = one.compare(setup, results)
    except Exception as error:
        outcome.failed[one.id] = kept_error(folder, one.id, error)
        say(f"{one.id}: not compared: {outcome.failed[one.id]}")
        return
    outcome.comparisons[one.id] = comparison
    try:
        outcome.figures[one.id] = list(one.figures(setup, results))
        _save(folder / one.id, comparison, outcome.figures[one.id])
    except Exception as error:  # numbers are worth more than a figure
        outcome.figures[one.id] = []
        outcome.undrawn[one.id] = kept_error(folder, one.id, error)
        say(f"{one.id}: not drawn: {outcome.undrawn[one.id]}")
        _save(folder / one.id, comparison, [])


def lacking(experiment: Experiment, vlm: HookedVLM) -> str:
    """What the loaded model lacks for an experiment; empty if nothing."""
    if "chat template" in experiment.needs:
        holders = (vlm.processor, vlm.tokenizer)
        if not any(getattr(one, "chat_template", None) for one in holders):
            return f"{vlm.name} has no chat template of its own"
    return ""


def _check(
    runs: Mapping[str, Recipe], store: Store, vlm: HookedVLM, say: Callable[[str], None]
) -> tuple[dict[str, Recipe], dict[str, str]]:
    """What is still to run, and what this model cannot run: before the first takes its hours."""
    todo, errors = {}, {}
    for name, recipe in runs.items():
        try:
            recipe.check_for(vlm)
        except VLMLensError as error:
            errors[name] = str(error)
            say(f"{name}: cannot be done: {error}")
            continue
        if store.load(name, recipe) is None:
            todo[name] = recipe
    if len(todo) + len(errors) < len(runs):
        say(f"{len(runs) - len(todo) - len(errors)} of {len(runs)} runs were finished before")
    return todo, errors


# ---------------------------------------------------------------------- files


def _save(folder: Path, comparison: Comparison, figures: Sequence[go.Figure]) -> None:
    before = [path.name for kind in ("*.csv", "figure*.html") for path in folder.glob(kind)]
    with written_together(folder, "experiment", remove=before) as to:
        comparison.numbers.to_csv(to / "numbers.csv", index=False)
        comparison.texts.to_csv(to / "texts.csv", index=False)
        findings_table([comparison]).to_csv(to / "findings.csv", index=False)
        for i, figure in enumerate(figures, start=1):
            write_figure(figure, to / f"figure{i}.html", plotlyjs="../../plotly.min.js")


def findings_table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """The paper's statements, one a row."""
    rows = [vars(finding) for one in comparisons for finding in one.findings]
    return pd.DataFrame(rows, columns=["statement", "paper", "here", "holds"])
