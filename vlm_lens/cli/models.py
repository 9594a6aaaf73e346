"""`vlm-lens models` and `vlm-lens points`: what there is, and what a model has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm_lens.cli.common import DEVICE, DTYPE, console, load, loading, plain_errors

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["models", "points"]

_NOTES_FIT = 120  # columns from which on the table of checkpoints has room for notes


def models(
    check: Annotated[
        str | None, typer.Option(help="Put this model, a folder or Hub id, to the suite.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Where to write that report as a page.")] = None,
    dtype: Annotated[str | None, DTYPE] = None,
    device: Annotated[str | None, DEVICE] = None,
) -> None:
    """Lists families, models in the package and checkpoints; or checks a model of your own."""
    if check is not None:
        _check(check, html, dtype, device)
        return
    screen = console()
    for table in (_families_table(), _zoo_table()):
        screen.print(table)
        screen.print()
    _print_checkpoints(screen)


def _check(name: str, html: Path | None, dtype: str | None, device: str | None) -> None:
    from vlm_lens.testing.check import check

    with plain_errors():
        report = check(load(name, **loading(dtype, device)))
        typer.echo(repr(report))
        if html is not None:
            typer.echo(f"Written to {report.save_html(html)}.")
    raise typer.Exit(0 if report.passed else 1)


def points(
    name: Annotated[str, typer.Argument(help="A zoo model, a folder or a Hub id.")],
    glob: Annotated[str, typer.Argument(help="Which points, for example '*resid*'.")] = "*",
) -> None:
    """Lists a model's points: the places that can be read and written."""
    from rich.table import Table

    with plain_errors():
        found = load(name).points(glob)
        rows = found.rows()
        table = Table(title=f"{len(found)} points of {name}", box=None)
        names, *others = rows[0]
        longest = max(len(str(row[names])) for row in rows)
        table.add_column(names, overflow="fold", min_width=longest)  # a name is never cut
        for column in others:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(str(value).replace("[", "\\[") for value in row.values()))
        console().print(table)


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
    for column in ("what was planted", "folder"):
        table.add_column(column, overflow="fold")
    for name in zoo.names():
        table.add_row(name, zoo.planted(name), str(zoo.path(name)))
    return table


def _print_checkpoints(screen: Any) -> None:
    """Names, ids and revisions in whole lines, to be copied; notes below where they do not fit."""
    from rich.table import Table

    from vlm_lens.model.checkpoints import CHECKPOINTS

    wide = screen.width >= _NOTES_FIT
    table = Table(title="Published checkpoints, by short name", box=None, header_style="bold",
                  padding=(0, 1))  # fmt: skip
    for column in ("name", "Hub id", "revision"):
        table.add_column(column, no_wrap=True)
    table.add_column("blocks", justify="right")
    table.add_column("patch after" if not wide else "patched after block", justify="right")
    if wide:
        table.add_column("notes", overflow="fold")
    below = []
    for one in CHECKPOINTS.values():
        layer = "" if one.patch_layer is None else str(one.patch_layer)
        notes = [*(f"{k.rsplit('.', 1)[-1]}={v}" for k, v in one.settings.items()), one.note]
        said = "; ".join(n for n in notes if n)
        cells = (one.name, one.repo, one.revision[:8], str(one.n_layers), layer)
        table.add_row(*cells, *[said] * wide)
        below += [f" {one.name}: {said}"] if said and not wide else []
    screen.print(table)
    for line in ["", *below]:
        screen.print(line, highlight=False)
