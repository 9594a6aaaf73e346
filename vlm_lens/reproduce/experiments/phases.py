"""Figures 8 and 14: what the last delimiter decodes to, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vlm_lens.recipes import PhaseAnalysis
from vlm_lens.reproduce import paper
from vlm_lens.reproduce.experiment import Comparison, Experiment, Finding, Results, always
from vlm_lens.terms import ANSWER, INPUT, PHASES, TASK, examples_of, layer_name

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vlm_lens.recipes import Recipe
    from vlm_lens.reproduce.setup import Setup

__all__ = ["EXPERIMENTS"]

PAPER_COLUMNS = {INPUT: "input", TASK: "task_word", ANSWER: "answer"}
MODALITIES = ("text", "image")
MODEL = "Idefics2"


def _runs(
    setup: Setup, tasks: tuple[str, ...], modalities: tuple[str, ...] = MODALITIES
) -> dict[str, Recipe]:
    return {
        f"phases-{name}-{modality}": setup.make(
            PhaseAnalysis, task=setup.task(name), modality=modality
        )
        for name in tasks
        for modality in modalities
    }


def _printed(task: str, modality: str) -> Any:
    curves = paper.phase_curves()
    return curves[(curves["task"] == task) & (curves["modality"] == modality)]


def _order(curves: Any) -> str:
    """The dominant phase of each layer in one letter."""
    return "".join(p[0].upper() for p in curves[list(PAPER_COLUMNS.values())].idxmax(axis=1))


def _compare(setup: Setup, results: Results) -> Comparison:
    rows, rows_of_text, here_all, there_all = [], [], [], []
    for result in results.values():
        task, modality = result.values["task"], result.values["modality"]
        there = _printed(task, modality)
        order = "" if there.empty else _order(there)
        here_all.append(result.phases)
        there_all.append(order)
        for phase in PHASES:
            rows.append(
                {
                    "method": f"{examples_of(modality)}: {phase} leads",
                    "task": task,
                    "quantity": "share of the layers",
                    "here": result.phases.count(phase[0].upper()) / len(result.phases),
                    "paper": order.count(phase[0].upper()) / len(order) if order else None,
                    "paper_model": MODEL,
                }
            )
        rows_of_text.append(
            {
                "what": f"{task}, {examples_of(modality)}: which of input, task and answer leads, "
                "from embed to the last block",
                "here": result.phases,
                "paper": order,
                "paper_model": MODEL,
            }
        )
    return Comparison.of(rows, rows_of_text, _findings(here_all, there_all))


def _findings(here: list[str], there: list[str]) -> Iterator[Finding]:
    printed = [one for one in there if one]
    ordered = [_ordered(one) for one in here]
    yield Finding(
        "First the input leads, then the task, then the answer.",
        f"{MODEL}: {sum(map(_ordered, printed))} of {len(printed)} curves in this order"
        if printed
        else "not digitised",
        f"{sum(ordered)} of {len(here)} curves",
        all(ordered),
    )
    shares, paper_shares = ([_shares(one) for one in each] for each in (here, printed))
    yield Finding(
        "Input, task and answer lead in about 50, 40 and 10 % of the layers.",
        f"{MODEL}, mean of these curves: {_percents(paper_shares)}" if printed else "not digitised",
        _percents(shares),
    )


def _ordered(order: str) -> bool:
    """Whether only the input leads until the task does, and later the answer to the end."""
    task_from, answer_from = order.find("T"), len(order.rstrip("A"))
    return set(order[: max(task_from, 0)]) == {"I"} and task_from < answer_from < len(order)


def _shares(order: str) -> list[float]:
    return [order.count(letter) / len(order) for letter in "ITA"]


def _percents(shares: list[list[float]]) -> str:
    means = [sum(column) / len(column) for column in zip(*shares, strict=True)]
    return ", ".join(f"{100 * m:.0f}" for m in means) + " %"


def _overlay(result: Any) -> go.Figure:
    """The curves, and the paper's as dotted lines over the same relative depth."""
    fig = result.plot()
    there = _printed(result.values["task"], result.values["modality"])
    if there.empty:
        return fig
    scale = (len(result.table) - 1) / (len(there) - 1)
    colours = {t.legendgroup: t.line.color for t in fig.data if t.mode == "lines+markers"}
    for phase, column in PAPER_COLUMNS.items():
        fig.add_scatter(
            x=[i * scale for i in range(len(there))],
            y=there[column],
            name=f"{MODEL}, {phase}",
            mode="lines",
            line={"color": colours[phase], "width": 1.3, "dash": "dot"},
            customdata=list(map(layer_name, there["layer"])),
            hovertemplate=f"{MODEL} (digitised), %{{customdata}}: %{{y:.2f}}<extra></extra>",
        )
    return fig


def _grid(results: Results) -> go.Figure:
    from vlm_lens.figures.phases import phase_grid

    return phase_grid([result.curves for result in results.values()])


_CLAIM = (
    "At the last delimiter the stream decodes to the input, then to the task, then to the answer, "
    "whether examples are text or pictures."
)
_DIGITISED = "The paper's curves are of Idefics2 alone and digitised (error about 0.01); "
_LAYERS = "Layers are blocks (0-based), by their output, after embed, the stream before the first."


def _first(setup: Setup) -> tuple[str, ...]:
    return setup.task_names[:1]


EXPERIMENTS = (
    Experiment(
        id="figure8",
        rows=("E8",),
        title="Figure 8: three phases",
        claim=_CLAIM,
        recipes=lambda s: _runs(s, _first(s)),
        compare=_compare,
        figures=lambda s, results: [_overlay(one) for one in results.values()],
        differs=always(
            _DIGITISED + "dotted lines show them over the same relative depth.", _LAYERS
        ),
    ),
    Experiment(
        id="figure14",
        rows=("E8",),
        title="Figure 14: three phases, every task",
        claim=_CLAIM + " The paper's summary, 50, 40 and 10 % of the layers, fits its first task; "
        "its own curves of the food tasks have hardly a task phase.",
        recipes=lambda s: _runs(s, s.task_names),
        compare=_compare,
        figures=lambda s, results: [_grid(results)],
        differs=always(
            _DIGITISED + "the table, not the figure, sets them beside the curves here.", _LAYERS
        ),
    ),
    Experiment(
        id="figure15",
        rows=("E8",),
        title="Figure 15: three phases of an instruction",
        claim="The last token of an instruction goes through the same phases.",
        recipes=lambda s: _runs(s, s.task_names, ("instruction",)),
        compare=_compare,
        figures=lambda s, results: [one.plot() for one in list(results.values())[:2]],
        differs=always(
            "The paper's curves of instructions are not digitised.",
            "An instruction alone has no answer; the answer's curve is a mean over the answers of "
            "the test rows, which the paper does not say.",
        ),
    ),
)
