"""Runs what is planned, keeps what is finished, and sets it beside the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    from vlm_lens.recipes import Result

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
    load: Callable[[str], Any] | None = None,
) -> Outcome:
    """Runs a model's recipes; those that are finished in its folder are not run again.

    Args:
        plan: What to run.
        say: Called with a line for each run.
        progress: Whether recipes show progress bars.
        load: Makes a HookedVLM of a model's name; `HookedVLM.from_pretrained` if None.

    Returns:
        The results beside the paper's numbers.

    Raises:
        VLMLensError: The model cannot be loaded, or its folder belongs to something else.
    """
    from vlm_lens.model import HookedVLM

    vlm = (load or HookedVLM.from_pretrained)(plan.setup.model)
    store = Store(plan.folder, plan.setup, vlm)
    skipped = dict(plan.skipped)
    experiments = []
    for one in plan.experiments:
        reason = lacking(one, vlm)
        if reason:
            skipped[one.id] = reason
        else:
            experiments.append(one)
    needed = {n: r for n, r in plan.runs.items()
              if any(n in e.recipes(plan.setup) for e in experiments)}  # fmt: skip
    results, errors = _run(needed, store, vlm, say, progress)
    comparisons, failed = {}, {}
    for one in experiments:
        wrong = [errors[name] for name in one.recipes(plan.setup) if name in errors]
        if wrong:
            failed[one.id] = wrong[0]
            continue
        mine = {name: results[name] for name in one.recipes(plan.setup)}
        comparison = one.compare(plan.setup, mine)
        comparisons[one.id] = comparison
        _save(plan.folder / one.id, one, plan, mine, comparison)
    return Outcome(plan, comparisons, results, skipped, failed)


def lacking(experiment: Experiment, vlm: Any) -> str:
    """What the loaded model lacks for an experiment; empty if nothing."""
    if "chat template" in experiment.needs:
        holders = (vlm.processor, vlm.tokenizer)
        if not any(getattr(one, "chat_template", None) for one in holders):
            return f"{vlm.name} has no chat template of its own"
    return ""


def _run(
    runs: Mapping[str, Any], store: Store, vlm: Any, say: Callable[[str], None], progress: bool
) -> tuple[dict[str, Result], dict[str, str]]:
    found = {name: store.load(name, recipe) for name, recipe in runs.items()}
    errors: dict[str, str] = {}
    for name, recipe in runs.items():  # all of them before the first takes its hours
        try:
            recipe.validate_for(vlm)
        except VLMLensError as error:
            errors[name] = str(error)
    for i, (name, recipe) in enumerate(runs.items(), start=1):
        count = f"[{i}/{len(runs)}] {name}"
        if name in errors:
            say(f"{count}: cannot be done: {errors[name]}")
            continue
        if found[name] is not None:
            say(f"{count}: finished before")
            continue
        clock = perf_counter()
        try:
            result = recipe.run(vlm, progress=progress)
        except VLMLensError as error:
            errors[name] = str(error)
            say(f"{count}: failed: {error}")
            continue
        found[name] = store.save(name, result)
        say(f"{count}: {perf_counter() - clock:.1f} s")
    return {name: one for name, one in found.items() if name not in errors}, errors


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
