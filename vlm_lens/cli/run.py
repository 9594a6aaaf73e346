"""`vlm-lens run`: a recipe from a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlm_lens.cli.common import DEVICE, DTYPE, console, load, loading, plain_errors

__all__ = ["run"]


def run(
    recipe: Annotated[Path, typer.Argument(help="A YAML file.")],
    model: Annotated[str | None, typer.Option(help="The model, if the file names none.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where tables and figures go; the file's name by default.")
    ] = None,
    code: Annotated[
        Path | None,
        typer.Option(help="A Python file with recipes of your own, which is executed."),
    ] = None,
    dtype: Annotated[str | None, DTYPE] = None,
    device: Annotated[str | None, DEVICE] = None,
) -> None:
    """Runs a recipe that is written in a YAML file."""
    with plain_errors():
        from vlm_lens.recipes import RecipeError
        from vlm_lens.recipes.parts.from_file import load_recipe
        from vlm_lens.report import result_report

        screen, options = console(), loading(dtype, device)
        made = load_recipe(recipe, code=code)
        if model is not None and made.model not in (None, model):
            raise RecipeError(f"{recipe} names the model {made.model}, and --model is {model}.")
        name = model or made.model
        if name is None:
            raise RecipeError(
                f"{recipe} names no model: write 'model: toy-llava', or give --model."
            )
        out = out or Path(recipe.stem)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RecipeError(f"{out} is there already: give another --out.")
        with screen.status(f"loading {name}"):
            vlm = load(name, **options)
        result = made.run(vlm, progress=screen.is_terminal)
        screen.print(str(result), highlight=False, markup=False, soft_wrap=True)
        screen.print(f"\nTables and figures: [bold]{result.save(out).resolve()}[/]", soft_wrap=True)
        command = f"vlm-lens run {recipe} --model {name}"
        for option, given in (("code", code), ("dtype", dtype), ("device", device)):
            command += f" --{option} {given}" if given else ""
        report = result_report(out / "report.html", result, commands=[command])
        screen.print(f"Report: [bold]{report.resolve()}[/]", soft_wrap=True)
