"""`vlm-lens reproduce`: the paper's experiments on a model, beside the paper's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm_lens.cli.common import DEVICE, DTYPE, console, loading, plain_errors, quiet

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["reproduce"]


def reproduce(
    ids: Annotated[
        list[str] | None,
        typer.Argument(help="table2, figure8, E4, ... or all; what there is, if left out."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A zoo model, a folder, a checkpoint's short name or a Hub id; several."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The language model that the model was made from.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="A folder with the tasks as the paper's authors publish them, or the id "
            "of their data set on the Hub."
        ),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks, with commas between; the paper's six by default.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds 1 to this many.")] = 3,
    out: Annotated[Path, typer.Option(help="Where results go.")] = Path("reproduce"),
    batch_size: Annotated[
        int | None, typer.Option(help="How many prompts run together.", min=1)
    ] = None,
    dtype: Annotated[str | None, DTYPE] = None,
    device: Annotated[str | None, DEVICE] = None,
    load_in_4bit: Annotated[
        bool,
        typer.Option(
            "--load-in-4bit",
            help="Quantise weights to 4 bits, as the paper's code does by "
            "default; needs bitsandbytes and CUDA.",
        ),
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Runs at once, each with a copy of the model; for models of the package as many "
            "as there are cores, else 1.",
            min=1,
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            help="Where several runs at once are made: loky (processes of this machine), ray, or "
            "the address of a Ray cluster."
        ),
    ] = None,
) -> None:
    """Runs experiments of the paper and sets each number beside the paper's.

    The same command goes on where it was stopped.
    """
    screen = console()
    if not ids:
        screen.print(_experiments())
        raise typer.Exit(0 if model is None else 2)
    with plain_errors():
        from vlm_lens.reproduce import execute, make_plan, write_report

        quiet()
        options = loading(dtype, device, load_in_4bit)
        plans = make_plan(
            ids,
            model or [],
            base=base,
            data=data,
            tasks=[one.strip() for one in tasks.split(",")] if tasks is not None else (),
            seeds=seeds,
            batch_size=batch_size,
            out=out,
        )
        outcomes = []
        for plan in plans:
            screen.print(_headline(plan), highlight=False)
            outcomes.append(
                execute(
                    plan,
                    say=lambda line: screen.print(line, highlight=False, markup=False),
                    progress=screen.is_terminal,
                    jobs=jobs or (None if on else _usual_jobs(plan.setup)),
                    on=on,
                    **options,
                )
            )
        report = write_report(out, outcomes)
        for outcome in outcomes:
            screen.print(_findings(outcome))
        screen.print(f"Report: [bold]{report.resolve()}[/]", soft_wrap=True)
        if any(outcome.failed for outcome in outcomes):
            raise typer.Exit(1)


def _usual_jobs(setup: Any) -> int:
    """Models of the package are small: one on each core."""
    import os

    own_data = any(not isinstance(task, str) for task in setup.tasks)
    return (os.cpu_count() or 1) if setup.is_organism and not own_data else 1


def _headline(plan: Any) -> str:
    setup = plan.setup
    base = f", base {setup.base}" if setup.base else ""
    left = "".join(f"\n  left out: {name}: {why}" for name, why in plan.skipped.items())
    return (
        f"[bold]{setup.label}[/]{base}: {len(plan.experiments)} experiments, "
        f"{len(plan.runs)} runs{left}"
    )


def _experiments() -> Table:
    from rich.table import Table

    from vlm_lens.reproduce import experiments

    table = Table(title="Experiments", box=None, header_style="bold", padding=(0, 1))
    table.add_column("id", no_wrap=True)
    table.add_column("rows", no_wrap=True)
    table.add_column("what", overflow="fold")
    for one in experiments().values():
        table.add_row(one.id, ", ".join(one.rows), one.title)
    return table


def _findings(outcome: Any) -> Table:
    from rich.table import Table

    wide = console().width >= 110
    table = Table(title=outcome.plan.setup.label, box=None, header_style="bold", padding=(0, 1))
    table.add_column("experiment", no_wrap=True)
    table.add_column("the paper's statement", overflow="fold", ratio=3)
    table.add_column("here", overflow="fold", ratio=2)
    if wide:
        table.add_column("paper", overflow="fold", ratio=2)
    table.add_column("holds", no_wrap=True)
    for name, comparison in outcome.comparisons.items():
        for one in comparison.findings:
            holds = {True: "yes", False: "no", None: ""}[one.holds]
            cells = (one.here, one.paper) if wide else (one.here,)
            table.add_row(name, one.statement, *cells, holds)
    for name, why in {**outcome.skipped, **outcome.failed}.items():
        table.add_row(name, f"not done: {why}")
    return table
