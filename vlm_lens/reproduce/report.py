"""The report of `vlm-lens reproduce`: each number beside the paper's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vlm_lens import zoo
from vlm_lens.reproduce import paper
from vlm_lens.reproduce.document import Beside, Document, Figures, Part, Table, to_html, to_markdown
from vlm_lens.reproduce.experiment import Comparison, Experiment
from vlm_lens.reproduce.experiments import experiments
from vlm_lens.reproduce.runner import Outcome
from vlm_lens.storage.files import write_whole
from vlm_lens.terms import INTERVALS, MEAN, OTHER_RULES, short_names

__all__ = ["make_document", "write_report"]

# What a reader must know of models that were made for demonstration.
_ORGANISM = (
    "{} is a small model that ships with the package; planted in it: {}. Its numbers test the code "
    "and show what such a finding looks like; they say nothing about large models."
)


def write_report(out: str | Path, outcomes: Sequence[Outcome]) -> Path:
    """Writes `report.html`, `report.md` and tables of all models.

    Args:
        out: The folder.
        outcomes: One a model.

    Returns:
        The HTML file.
    """
    out = Path(out)
    document = make_document(outcomes)
    for name in ("numbers", "texts", "findings"):
        table = _joined(outcomes, name)
        write_whole(out / f"{name}.csv", table.to_csv(index=False))
    write_whole(out / "report.md", to_markdown(document))
    write_whole(out / "report.html", to_html(document))
    return out / "report.html"


def make_document(outcomes: Sequence[Outcome]) -> Document:
    """The report's content.

    Args:
        outcomes: One a model.
    """
    about = paper.source()
    models = ", ".join(one.plan.setup.label for one in outcomes)
    lead = (
        f"{about['paper']} arXiv {about['arxiv']}. Each number is set beside the paper's: first "
        "the number here, after the stroke the paper's, a dash where it has none; a row without a "
        "stroke is none of the paper's. "
    )
    organisms = (one.plan.setup.label for one in outcomes if one.plan.setup.is_organism)
    lead += " ".join(_ORGANISM.format(name, zoo.planted(name)) for name in organisms)
    document = Document(f"The paper's experiments on {models}", lead)
    document.parts.append(_overview(outcomes))
    for experiment in experiments().values():
        if any(_has(one, experiment) for one in outcomes):
            document.parts.extend(_experiment(experiment, outcomes))
    document.parts.append(_settings(outcomes))
    return document


def _has(outcome: Outcome, experiment: Experiment) -> bool:
    return experiment.id in {**outcome.comparisons, **outcome.skipped, **outcome.failed}


def _overview(outcomes: Sequence[Outcome]) -> Part:
    rows = []
    for outcome in outcomes:
        for name, comparison in outcome.comparisons.items():
            for one in comparison.findings:
                holds = {True: "yes", False: "no", None: "–"}[one.holds]
                rows.append(
                    (name, outcome.plan.setup.label, one.statement, one.paper, one.here, holds)
                )
    rows.sort(key=lambda row: list(experiments()).index(row[0]))
    blocks: list[Any] = [
        "The statements of the paper, and a few that it does not make, with the numbers on which "
        "they stand. Where two methods are compared on the same queries, 'holds' wants the paired "
        "95 % interval of their difference (bootstrap over queries), which stands with the "
        "numbers, beyond zero; other statements are judged by the numbers alone. A good result: "
        "statements hold, and the controls, which write another vector at the same place, stay "
        "near zero. A small model that was trained on such prompts answers them better than the "
        "paper's models do, so that a vector has less to add: a 'no' of that kind is no fault.",
        Table(("experiment", "model", "statement", "paper", "here", "holds"), rows),
    ]
    left = [
        f"{name}, {outcome.plan.setup.label}: {why}"
        for outcome in outcomes
        for name, why in {**outcome.skipped, **outcome.failed}.items()
    ]
    if left:
        blocks += ["Not done:", left]
    return Part("What holds here", blocks, "Overview")


def _experiment(experiment: Experiment, outcomes: Sequence[Outcome]) -> Iterator[Part]:
    blocks: list[Any] = [experiment.claim]
    setups = [one.plan.setup for one in outcomes if _has(one, experiment)]
    for text in dict.fromkeys(map(experiment.stand_in, setups)):
        blocks += [f"What stands in: {text}"] if text else []
    differs = list(dict.fromkeys(line for one in setups for line in experiment.differs(one)))
    blocks += ["Why numbers may differ:", differs] if differs else []
    yield Part(experiment.title, blocks, experiment.id)
    for outcome in outcomes:
        model = outcome.plan.setup.label
        if experiment.id in outcome.comparisons:
            comparison = outcome.comparisons[experiment.id]
            title = f"{model}, beside {experiment.paper_model(outcome.plan.setup)}"
            yield Part(title, [*_tables(comparison), *_figures(experiment, outcome)])
        else:
            reasons = {**outcome.skipped, **outcome.failed}
            if experiment.id in reasons:
                yield Part(model, [f"Not done: {reasons[experiment.id].rstrip('.')}."])


def _tables(comparison: Comparison) -> Iterator[Table]:
    if not comparison.numbers.empty:
        yield _wide(comparison.numbers)
    if not comparison.texts.empty:
        texts = comparison.texts
        rows = zip(texts["what"], texts["here"], texts["paper"], strict=True)
        yield Table(("what", "here", "paper"), [tuple(one or "–" for one in row) for row in rows])


def _wide(numbers: pd.DataFrame) -> Table:
    """Methods by tasks, each number beside the paper's; of the mean what else is known."""
    tasks = list(dict.fromkeys(numbers["task"]))
    names = short_names(tasks)
    further = {
        head: show
        for head, column, show in _FURTHER
        if numbers.loc[numbers["task"] == MEAN, column].notna().any()
    }
    rows = []
    for (method, quantity), mine in numbers.groupby(["method", "quantity"], sort=False):
        by_task = {one["task"]: one for one in mine.to_dict("records")}
        label = method if quantity == "accuracy" else f"{method}, {quantity}"
        printed = mine["paper"].notna().any()
        cells = [
            Beside(_number(by_task[t]["here"]), _number(by_task[t]["paper"]) if printed else "")
            if t in by_task
            else ""
            for t in tasks
        ]
        mean = by_task.get(MEAN)
        rows.append((label, *cells, *("" if mean is None else f(mean) for f in further.values())))
    return Table(("", *(names[t] for t in tasks), *further), rows)


def _number(value: float) -> str:
    if value != value:
        return "–"
    return f"{value:.0f}" if value == int(value) and abs(value) > 1 else f"{value:.2f}"


def _interval(low: str, high: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: "" if row[low] != row[low] else f"{row[low]:.2f}-{row[high]:.2f}"


def _known(column: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: "" if row[column] != row[column] else f"{row[column]:.2f}"


# Of the mean over tasks: heading, the column that says whether it is known, how it is written.
_FURTHER = (
    *((name, low, _interval(low, high)) for name, low, high in INTERVALS),
    *((name, name, _known(name)) for name in OTHER_RULES),
)


def _figures(experiment: Experiment, outcome: Outcome) -> Iterator[Figures | str]:
    drawn = outcome.figures.get(experiment.id, ())
    if drawn:
        folder = f"{outcome.plan.folder.name}/{experiment.id}"
        yield Figures(drawn, [f"{folder}/figure{i}.html" for i in range(1, len(drawn) + 1)])
    if experiment.id in outcome.undrawn:
        yield f"Figures were not drawn: {outcome.undrawn[experiment.id]}"


def _settings(outcomes: Sequence[Outcome]) -> Part:
    rows = []
    for outcome in outcomes:
        setup = outcome.plan.setup
        for result in list(outcome.results.values())[:1]:
            facts = {**result.provenance["model"], **result.provenance["versions"]}
            rows += [(setup.label, k, v) for k, v in facts.items() if v is not None]
        rows += [
            (setup.label, "base language model", setup.base or "none"),
            (setup.label, "tasks", ", ".join(setup.task_names)),
            (setup.label, "seeds", "1" if setup.seeds == 1 else f"1 to {setup.seeds}"),
        ]
    return Part(
        "Settings", [Table(("model", "setting", "value"), rows)], "Settings"
    )  # fmt: skip


def _joined(outcomes: Sequence[Outcome], name: str) -> pd.DataFrame:
    """A table of all experiments and models."""
    tables = []
    for outcome in outcomes:
        for key, comparison in outcome.comparisons.items():
            table = getattr(comparison, name)
            if name == "findings":
                table = pd.DataFrame([vars(one) for one in table])
            if len(table):
                table = table.copy()
                table.insert(0, "experiment", key)
                table.insert(1, "model", outcome.plan.setup.label)
                tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
