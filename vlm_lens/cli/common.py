"""What the commands share: the model, the terminal, and errors without a traceback."""

from __future__ import annotations

from typing import Any

import typer

__all__ = ["DEVICE", "DTYPE", "console", "load", "loading", "plain_errors", "quiet", "shown"]

DTYPE = typer.Option(help="For example bfloat16; the checkpoint's own by default.")
DEVICE = typer.Option(help="For example cuda.")


def load(name: str, **options: Any) -> Any:
    """A HookedVLM, without transformers' progress bars."""
    from vlm_lens.model.hooked_vlm import HookedVLM

    quiet()
    return HookedVLM.from_pretrained(name, **options)


def loading(dtype: str | None, device: str | None, load_in_4bit: bool = False) -> dict[str, Any]:
    """The options with which a model is loaded.

    Args:
        dtype: The option --dtype.
        device: The option --device.
        load_in_4bit: NF4 with double quantisation, computed in `dtype` or else float16: how the
            paper's code loads its models by default.

    Raises:
        ModelError: No such dtype; or 4 bits are asked for where they cannot be had.
    """
    from vlm_lens.errors import ModelError

    options: dict[str, Any] = {} if device is None else {"device": device}
    if dtype is not None:
        import torch

        named = getattr(torch, dtype, None)
        if not isinstance(named, torch.dtype):
            raise ModelError(f"--dtype {dtype} is none: write float32, bfloat16 or float16.")
        options["dtype"] = named
    return _in_4bit(options) if load_in_4bit else options


def _in_4bit(options: dict[str, Any]) -> dict[str, Any]:
    from importlib.util import find_spec

    import torch

    from vlm_lens.errors import ModelError

    device = options.pop("device", "cuda")
    if find_spec("bitsandbytes") is None:
        raise ModelError("--load-in-4bit needs bitsandbytes: pip install bitsandbytes.")
    if not torch.cuda.is_available() or not device.startswith("cuda"):
        raise ModelError(
            f"--load-in-4bit needs CUDA; the device is {device}, and torch finds "
            f"{torch.cuda.device_count()} CUDA devices."
        )
    from transformers import BitsAndBytesConfig

    dtype = options.setdefault("dtype", torch.float16)
    options["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_storage=dtype,
    )  # fmt: skip
    return {**options, "device_map": {"": device}}  # such weights cannot be moved later


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
