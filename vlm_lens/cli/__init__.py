"""The command line: `vlm-lens demo | explore | reproduce | run | models | points`."""

from __future__ import annotations

import typer

from vlm_lens.cli.demo import demo
from vlm_lens.cli.explore import explore
from vlm_lens.cli.models import models, points
from vlm_lens.cli.reproduce import reproduce
from vlm_lens.cli.run import run

__all__ = ["app"]

app = typer.Typer(
    name="vlm-lens",
    help="Name any place in a vision-language model's computation, and read it or change it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


@app.callback()
def main() -> None:
    """Name any place in a vision-language model's computation, and read it or change it."""


for command in (demo, explore, reproduce, run, models, points):
    app.command()(command)
