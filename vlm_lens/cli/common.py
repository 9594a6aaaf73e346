"""What the commands share: the model, the terminal, and errors without a traceback."""

from __future__ import annotations

from typing import Any

import typer

__all__ = ["console", "load", "plain_errors", "quiet", "shown"]


def load(name: str, **options: Any) -> Any:
    """A HookedVLM, without transformers' progress bars."""
    from vlm_lens.model import HookedVLM

    quiet()
    return HookedVLM.from_pretrained(name, **options)


def quiet() -> None:
    """Turns off transformers' progress bars."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def console() -> Any:
    """The terminal."""
    from rich.console import Console

    return Console()


def shown(value: Any) -> str:
    """A cell of a table."""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


class plain_errors:  # noqa: N801  used like a function
    """Shows an error of the package as one message, without a traceback."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        from rich.markup import escape

        from vlm_lens.errors import VLMLensError

        if isinstance(error, VLMLensError):
            name = type(error).__name__
            console().print(f"[bold red]{name}[/]: {escape(str(error))}", highlight=False)
            raise typer.Exit(1) from error
        if kind is KeyboardInterrupt:
            console().print("Stopped. What is finished is kept.")
            raise typer.Exit(130) from error
