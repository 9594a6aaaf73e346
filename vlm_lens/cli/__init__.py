"""The command line: `vlm-lens demo | explore | reproduce | run | models | points`."""

from __future__ import annotations

from typing import Annotated

import typer

from vlm_lens.cli.demo import demo
from vlm_lens.cli.explore import explore
from vlm_lens.cli.models import models, points
from vlm_lens.cli.reproduce import reproduce
from vlm_lens.cli.run import run
from vlm_lens.version import __version__

__all__ = ["app"]

app = typer.Typer(
    name="vlm-lens",
    help="Name any place in a vision-language model's computation, and read it or change it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vlm-lens {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Name any place in a vision-language model's computation, and read it or change it."""


for command in (demo, explore, reproduce, run, models, points):
    app.command()(command)
