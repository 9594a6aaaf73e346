"""`vlm-lens explore`: a page on which a model is looked into and changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vlm_lens.cli.common import DEVICE, DTYPE, console, load, loading, plain_errors

__all__ = ["explore"]

_ORGANISMS = ("toy-llava", "toy-idefics2", "toy-fuyu")
_QUERY = "Q:<image>\nA:"


def explore(
    model: Annotated[
        list[str] | None,
        typer.Option(help="A zoo model, a folder or a Hub id; may be given several times. "
                     "By default the three small models that ship."),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="A picture of your own, in place of rows of the tasks.")
    ] = None,
    text: Annotated[
        str, typer.Option(help="The prompt around --image; <image> marks the picture's place.")
    ] = _QUERY,
    task: Annotated[
        list[str] | None,
        typer.Option(help="A task whose vector can be written; may be given several times. "
                     "By default the six of the paper."),
    ] = None,
    source: Annotated[
        Literal["text", "image", "description", "instruction"],
        typer.Option(help="What vectors are read from: examples so given, or an instruction."),
    ] = "text",
    rows: Annotated[int, typer.Option(help="Rows shown of each domain.", min=1)] = 4,
    out: Annotated[
        Path | None, typer.Option(help="Where the page goes; explorer.html by default.")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Compute on demand, for a page on this machine.")
    ] = False,
    port: Annotated[int, typer.Option(help="Of --serve; 0 for any that is free.")] = 8790,
    dtype: Annotated[str | None, DTYPE] = None,
    device: Annotated[str | None, DEVICE] = None,
) -> None:  # fmt: skip
    """Writes a page that shows answers, attention and lens, with and without a task vector."""
    with plain_errors():
        from vlm_lens.errors import ModelError
        from vlm_lens.pictures import as_picture
        from vlm_lens.prompts.template import RawPrompt
        from vlm_lens.storage.files import FileError

        path = Path("explorer.html") if out is None else out
        if path.suffix != ".html":
            raise FileError(f"--out {out} is a page: call it something.html.")
        if serve and out is not None:
            raise FileError("--serve writes no page: leave --out away, or --serve.")
        if serve and len(model or ()) > 1:
            raise ModelError("--serve runs one model: give --model once.")
        picture = None if image is None else as_picture(image, "--image")
        names, options = model or _ORGANISMS[: 1 if serve else None], loading(dtype, device)
        given = None if picture is None else {image.name: RawPrompt(text, (picture,))}
        if serve:
            _serve(names[0], options, given, task, source, rows, text, port)
        else:
            _write(path, names, options, given, task, source, rows)


def _write(
    path: Path, names: Sequence[str], options: dict[str, Any], given: dict | None,
    tasks: list[str] | None, source: Any, rows: int,
) -> None:  # fmt: skip
    from vlm_lens.explorer import Explorer, explore

    screen, views = console(), []
    for name in names:
        with screen.status(f"loading {name}"):
            vlm = load(name, **options)
        views += explore(vlm, given, tasks=tasks or "all", source=source, rows=rows).views
    Explorer(tuple(views)).save(path)
    size = path.stat().st_size / 1e6
    screen.print(f"Page: [bold]{path.resolve()}[/] ({size:.1f} MB)", soft_wrap=True)


def _serve(
    name: str, options: dict[str, Any], given: dict | None, tasks: list[str] | None,
    source: Any, rows: int, text: str, port: int,
) -> None:  # fmt: skip
    from vlm_lens.errors import ModelError
    from vlm_lens.explorer.explore import chosen_tasks
    from vlm_lens.explorer.rows import first_rows
    from vlm_lens.explorer.service import Service

    try:
        from vlm_lens.explorer.serve import listen, serve
    except ModuleNotFoundError as error:
        raise ModelError(
            f"--serve needs {error.name}: pip install 'vlm-lens\[serve]', or write a page instead."
        ) from error
    screen, listening = console(), listen(port)
    chosen = chosen_tasks(tasks or "all")
    with listening:
        with screen.status(f"loading {name}"):
            vlm = load(name, **options)
        prompts = given or first_rows(vlm, chosen, rows)
        service = Service(vlm, prompts, chosen, text, source)
        address = "http://{}:{}/".format(*listening.getsockname())
        screen.print(f"[bold]{address}[/] on this machine only; Ctrl-C ends it.", soft_wrap=True)
        serve(service, listening)
