"""`vlm-lens explore`: a page on which a model is looked into and changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlm_lens.cli.common import DEVICE, DTYPE, console, load, loading, plain_errors

if TYPE_CHECKING:
    from vlm_lens.explorer import Explorer
    from vlm_lens.model.hooked_vlm import HookedVLM

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
    rows: Annotated[int, typer.Option(help="Rows shown of each domain.", min=1)] = 4,
    out: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("explorer.html"),
    dtype: Annotated[str | None, DTYPE] = None,
    device: Annotated[str | None, DEVICE] = None,
) -> None:  # fmt: skip
    """Writes a page that shows answers, attention and lens, with and without a task vector."""
    with plain_errors():
        from vlm_lens.pictures import as_picture
        from vlm_lens.storage.files import FileError

        if out.suffix != ".html":
            raise FileError(f"--out {out} is a page: call it something.html.")
        picture = None if image is None else as_picture(image, "--image")
        screen, options = console(), loading(dtype, device)
        made: Explorer | None = None
        for name in model or _ORGANISMS:
            with screen.status(f"loading {name}"):
                vlm = load(name, **options)
            page = _explored(vlm, picture and {image.name: vlm.prompt(text, [picture])}, task, rows)
            made = page if made is None else made + page
        path = made.save(out)
        size = path.stat().st_size / 1e6
        screen.print(f"Page: [bold]{path.resolve()}[/] ({size:.1f} MB)", soft_wrap=True)


def _explored(
    vlm: HookedVLM, prompts: dict | None, tasks: list[str] | None, rows: int
) -> Explorer:  # fmt: skip
    from vlm_lens.explorer import explore

    return explore(vlm, prompts, tasks=tasks or "all", rows=rows)
