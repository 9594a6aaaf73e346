"""`vlm-lens demo`: one experiment on a small model, with a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlm_lens.cli.common import console, load, plain_errors, shown
from vlm_lens.terms import INTERVALS, OTHER_RULES, PATCH, PHASES

if TYPE_CHECKING:
    from rich.table import Table

    from vlm_lens.recipes import PhaseResult, TransferResult

__all__ = ["demo", "phase_table", "transfer_table"]


def demo(
    model: Annotated[str, typer.Option(help="A zoo model, a folder or a Hub id.")] = "toy-llava",
    out: Annotated[Path, typer.Option(help="Where the report and the tables go.")] = Path("demo"),
    seeds: Annotated[int, typer.Option(help="Seeds 1 to this many.", min=1)] = 3,
) -> None:
    """Reads tasks from text, writes them into queries of a picture, and says how well it works."""
    with plain_errors():
        from vlm_lens.recipes import CrossModalPatch, PhaseAnalysis
        from vlm_lens.report import demo_report

        screen = console()
        with screen.status(f"loading {model}"):
            vlm = load(model)
        screen.print(f"[bold]{vlm.name}[/]: {vlm.cfg.n_layers} blocks of width {vlm.cfg.d_model}")
        recipe = CrossModalPatch(source="text", query="image", seeds=seeds)
        transfer = recipe.run(vlm)
        screen.print(transfer_table(transfer))
        for note in transfer.notes:
            screen.print(f"[dim]{note}[/]", highlight=False)
        phases = [
            PhaseAnalysis("country-capital", modality=modality).run(vlm)
            for modality in ("text", "image")
        ]
        for one in phases:
            screen.print(phase_table(one))
        command = f"vlm-lens demo --model {model} --out {out} --seeds {seeds}"
        with screen.status("writing the report"):
            transfer.save(out / "transfer")
            for one in phases:
                one.save(out / f"phases-{one.values['modality']}")
            report = demo_report(
                out / "report.html", vlm, recipe, transfer, phases, commands=[command]
            )
        screen.print(f"Report: [bold]{report.resolve()}[/]", soft_wrap=True)
        screen.print(f"Tables: {(out / 'transfer').resolve()} and beside it", soft_wrap=True)


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
