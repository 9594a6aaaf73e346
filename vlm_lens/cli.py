"""The command line: `vlm-lens demo | models | points`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from vlm_lens.recipes import PhaseResult, TransferResult

__all__ = ["app"]

app = typer.Typer(
    name="vlm-lens",
    help="Name any place in a vision-language model's computation, and read it or change it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)

_Model = Annotated[str, typer.Option(help="A zoo model, a folder or a Hub id.")]


@app.callback()
def main() -> None:
    """Name any place in a vision-language model's computation, and read it or change it."""


@app.command()
def demo(
    model: _Model = "toy-llava",
    out: Annotated[Path, typer.Option(help="Where the report and the tables go.")] = Path("demo"),
    seeds: Annotated[int, typer.Option(help="Seeds 1 to this many.", min=1)] = 3,
) -> None:
    """Reads tasks from text, writes them into queries of a picture, and says how well it works."""
    with _plain_errors():
        from vlm_lens.recipes import CrossModalPatch, PhaseAnalysis
        from vlm_lens.report import demo_report

        console = _console()
        with console.status(f"loading {model}"):
            vlm = _load(model)
        console.print(f"[bold]{vlm.name}[/]: {vlm.cfg.n_layers} blocks of width {vlm.cfg.d_model}")
        recipe = CrossModalPatch(source="text", query="image", seeds=seeds)
        transfer = recipe.run(vlm)
        console.print(_transfer_table(transfer))
        for note in transfer.notes:
            console.print(f"[dim]{note}[/]", highlight=False)
        phases = [
            PhaseAnalysis("country-capital", modality=modality).run(vlm)
            for modality in ("text", "image")
        ]
        for one in phases:
            console.print(_phase_table(one))
        command = f"vlm-lens demo --model {model} --out {out} --seeds {seeds}"
        with console.status("writing the report"):
            transfer.save(out / "transfer")
            for one in phases:
                one.save(out / f"phases-{one.values['modality']}")
            report = demo_report(
                out / "report.html", vlm, recipe, transfer, phases, commands=[command]
            )
        console.print(f"Report: [bold]{report.resolve()}[/]", soft_wrap=True)
        console.print(f"Tables: {(out / 'transfer').resolve()} and beside it", soft_wrap=True)


@app.command()
def models() -> None:
    """Lists the families that are known, the models in the package, and published checkpoints."""
    console = _console()
    for table in (_families_table(), _zoo_table(), _checkpoints_table()):
        console.print(table)
        console.print()


@app.command()
def points(
    name: Annotated[str, typer.Argument(help="A zoo model, a folder or a Hub id.")],
    glob: Annotated[str, typer.Argument(help="Which points, for example '*resid*'.")] = "*",
) -> None:
    """Lists a model's points: the places that can be read and written."""
    from rich.table import Table

    with _plain_errors():
        found = _load(name).points(glob)
        rows = found.rows()
        table = Table(*rows[0], title=f"{len(found)} points of {name}", box=None)
        for row in rows:
            table.add_row(*(str(value).replace("[", "\\[") for value in row.values()))
        _console().print(table)


def _families_table() -> Table:
    from rich.table import Table

    from vlm_lens.families import families

    types: dict[Any, list[str]] = {}
    for model_type, family in families().items():
        types.setdefault(family, []).append(model_type)
    table = Table(title="Families", box=None, header_style="bold", padding=(0, 1))
    table.add_column("family", no_wrap=True)
    for column in ("Hugging Face model types", "what it is", "notes"):
        table.add_column(column, overflow="fold")
    for family in sorted(types, key=lambda f: (f.takes_images, f.name)):
        table.add_row(family.name, ", ".join(types[family]), _about(family), _notes(family))
    return table


def _about(family: Any) -> str:
    """What is said of a family in the first line of its file, its own name left out."""
    import sys

    lines = (sys.modules[type(family).__module__].__doc__ or "").strip().splitlines()
    _, _, about = lines[0].rpartition(": ") if lines else ("", "", "")
    return about.rstrip(".") if family.takes_images else "a text model, no pictures"


def _notes(family: Any) -> str:
    """What a user of a family must know, one sentence a kind of thing."""
    said = {
        "runs in full": family.not_replayable,
        "generates in full": getattr(family, "not_continued", ""),
        "stream": family.residual_breaks,
    }
    return "; ".join(f"{kind}: {why}" for kind, why in said.items() if why)


def _zoo_table() -> Table:
    from rich.table import Table

    from vlm_lens import zoo

    table = Table(title="Models in the package", box=None, header_style="bold", padding=(0, 1))
    table.add_column("name", no_wrap=True)
    table.add_column("folder", overflow="fold")
    for name in zoo.names():
        table.add_row(name, str(zoo.path(name)))
    return table


def _checkpoints_table() -> Table:
    from rich.table import Table

    from vlm_lens.checkpoints import CHECKPOINTS

    table = Table(title="Published checkpoints, by short name", box=None, header_style="bold",
                  padding=(0, 1))  # fmt: skip
    table.add_column("name", no_wrap=True)
    table.add_column("Hub id", overflow="fold")
    table.add_column("revision", no_wrap=True)
    table.add_column("blocks", justify="right")
    table.add_column("patched after block", justify="right")
    table.add_column("notes", overflow="fold")
    for one in CHECKPOINTS.values():
        layer = "" if one.patch_layer is None else str(one.patch_layer)
        notes = [*(f"{k.rsplit('.', 1)[-1]}={v}" for k, v in one.settings.items()), one.note]
        table.add_row(one.name, one.repo, one.revision[:8], str(one.n_layers), layer,
                      "; ".join(n for n in notes if n))  # fmt: skip
    return table


def _transfer_table(result: TransferResult) -> Table:
    from rich.table import Table

    summary = result.summary()
    if _console().width < 100:
        summary = summary.drop(columns=["95 %", "strict"])
    title = f"{result.values['source']} -> {result.values['query']}, block {result.layer}"
    table = Table(title=title, box=None, header_style="bold", padding=(0, 1))
    for column in summary.columns:
        side = "left" if column == "method" else "right"
        table.add_column(str(column), justify=side, no_wrap=True)
    for row in summary.to_dict("records"):
        style = "bold cyan" if row["method"] == "Patch" else None
        table.add_row(*map(_shown, row.values()), style=style)
    return table


def _phase_table(result: PhaseResult) -> Table:
    from rich.table import Table

    values = result.values
    title = (
        f"{values['task']}, {values['modality']} examples: {result.phases} "
        f"(input {values['input_token']!r}, task {values['task_token']!r})"
    )
    table = Table("layer", "where", "input", "task", "answer", "phase", title=title, box=None)
    for row in result.table.to_dict("records"):
        cells = (row["layer"], row["where"], row["input"], row["task"], row["answer"])
        table.add_row(*map(_shown, cells), row["phase"])
    return table


def _shown(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _load(name: str) -> Any:
    from transformers.utils import logging

    from vlm_lens.model import HookedVLM

    logging.disable_progress_bar()
    return HookedVLM.from_pretrained(name)


def _console() -> Any:
    from rich.console import Console

    return Console()


class _plain_errors:  # noqa: N801  used like a function
    """Shows an error of the package as one message, without a traceback."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        from vlm_lens.errors import VLMLensError

        if isinstance(error, VLMLensError):
            _console().print(f"[bold red]{type(error).__name__}[/]: {error}", markup=True)
            raise typer.Exit(1) from error
