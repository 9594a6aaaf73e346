"""`vlm-lens demo`: one experiment on a small model, with a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm_lens.cli.common import DEVICE, DTYPE, console, load, loading, plain_errors, shown
from vlm_lens.terms import INTERVALS, OTHER_RULES, PATCH, PHASES

if TYPE_CHECKING:
    from rich.table import Table

    from vlm_lens.model.hooked_vlm import HookedVLM
    from vlm_lens.recipes import PhaseResult, TransferResult
    from vlm_lens.tasks import Task

__all__ = ["demo", "phase_table", "transfer_table"]

_SMALL = 20_000_000  # parameters: a model of no more does everything in a minute or two on a CPU
_ROWS, _RUNS = 20, 12  # of a larger one: test rows of a task, and prompts of phases


def demo(
    model: Annotated[str, typer.Option(help="A zoo model, a folder or a Hub id.")] = "toy-llava",
    out: Annotated[Path, typer.Option(help="Where the report and the tables go.")] = Path("demo"),
    tasks: Annotated[
        str, typer.Option(help="Tasks, with commas between; all: the paper's six.")
    ] = "all",
    seeds: Annotated[
        int | None,
        typer.Option(help="Seeds 1 to this many; 3, or 1 for more than 20 M parameters.", min=1),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            help="Test rows of a task, evenly spread; all, or 20 for more than 20 M parameters.",
            min=1,
        ),
    ] = None,
    dtype: Annotated[str | None, DTYPE] = None,
    device: Annotated[str | None, DEVICE] = None,
) -> None:
    """Reads tasks from text, writes them into queries of a picture, and says how well it works.

    A model that takes no pictures is asked in text.
    """
    with plain_errors():
        from vlm_lens.recipes import CrossModalPatch, PhaseAnalysis
        from vlm_lens.report import demo_report

        screen = console()
        names = tasks if tasks == "all" else tuple(one.strip() for one in tasks.split(","))
        chosen = CrossModalPatch(names).chosen_tasks()  # refused before a model is loaded
        with screen.status(f"loading {model}"):
            vlm = load(model, **loading(dtype, device))
        screen.print(f"[bold]{vlm.name}[/]: {vlm.cfg.n_layers} blocks of width {vlm.cfg.d_model}")
        seeds, rows, runs = _sizes(vlm, seeds, rows)
        asked: tuple[Task, ...] = tuple(task.fewer(rows) if rows else task for task in chosen)
        named = asked if rows else tuple(task.name for task in chosen)
        modalities: tuple[Any, ...] = ("text", "image") if vlm.family.takes_images else ("text",)
        recipe = CrossModalPatch(named, source="text", query=modalities[-1], seeds=seeds)
        screen.print(
            f"[dim]{len(asked)} tasks, {sum(len(one.test) for one in asked)} test rows, "
            f"{seeds} draw{'s' * (seeds > 1)} of examples; --rows and --seeds change that.[/]",
            highlight=False,
        )
        transfer = recipe.run(vlm)
        screen.print(transfer_table(transfer))
        for note in transfer.notes:
            screen.print(f"[dim]{note}[/]", highlight=False)
        first, runs = chosen[0].name, min(runs, len(chosen[0].test))
        phases = [PhaseAnalysis(first, modality=m, runs=runs).run(vlm) for m in modalities]
        for one in phases:
            screen.print(phase_table(one))
        command = f"vlm-lens demo --model {model} --out {out} --tasks {tasks} --seeds {seeds}"
        for option, given in (("rows", rows), ("dtype", dtype), ("device", device)):
            command += f" --{option} {given}" if given else ""
        with screen.status("writing the report"):
            transfer.save(out / "transfer")
            for one in phases:
                one.save(out / f"phases-{one.values['modality']}")
            report = demo_report(
                out / "report.html", vlm, recipe, transfer, phases, commands=[command]
            )
        screen.print(f"Report: [bold]{report.resolve()}[/]", soft_wrap=True)
        screen.print(f"Tables: {(out / 'transfer').resolve()} and beside it", soft_wrap=True)


def _sizes(vlm: HookedVLM, seeds: int | None, rows: int | None) -> tuple[int, int | None, int]:
    """Seeds, test rows of a task (None: all) and prompts of phases: a few minutes on a CPU."""
    small = sum(p.numel() for p in vlm.hf_model.parameters()) <= _SMALL
    if vlm.device.type == "cpu" and not small:
        return seeds or 1, rows or _ROWS, _RUNS
    return seeds or 3, rows, 100


def transfer_table(result: TransferResult) -> Table:
    """Methods by tasks."""
    from rich.table import Table

    summary = result.summary()
    if console().width < 120:
        summary = summary.drop(columns=[*(name for name, *_ in INTERVALS), *OTHER_RULES])
    title = f"{result.values['source']} -> {result.values['query']}, block {result.layer}"
    table = Table(title=title, box=None, header_style="bold", padding=(0, 1))
    for column in summary.columns:
        side = "left" if column == "method" else "right"
        table.add_column(str(column), justify=side, no_wrap=True)
    for row in summary.to_dict("records"):
        style = "bold cyan" if row["method"] == PATCH else None
        table.add_row(*map(shown, row.values()), style=style)
    return table


def phase_table(result: PhaseResult) -> Table:
    """The three tokens by layer."""
    from rich.table import Table

    values = result.values
    title = (
        f"{values['task']}, {values['modality']} examples: {result.phases} "
        f"(input {values['input_token']!r}, task {values['task_token']!r})"
    )
    table = Table("block", *PHASES, "phase", title=title, box=None)
    for row in result.table.to_dict("records"):
        cells = (row["layer"], *(row[phase] for phase in PHASES))
        table.add_row(*map(shown, cells), row["phase"])
    return table
