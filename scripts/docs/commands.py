"""The commands of `vlm-lens` and their options as Markdown, from what `--help` says."""

from __future__ import annotations

import inspect
import re
from typing import Any

import typer.main

from vlm_lens.cli import app


def page() -> str:
    """A section a command: what it does, how it is called, its options."""
    root: Any = typer.main.get_command(app)
    lines = ["<!-- Written by scripts/docs/generate.py from vlm_lens.cli: do not edit. -->\n"]
    for name, command in root.commands.items():
        usage = [f"vlm-lens {name}", *(_argument(p) for p in command.params)]
        lines += [f"## {name}\n", f"`{' '.join(filter(None, usage))} [OPTIONS]`\n"]
        lines += [inspect.cleandoc(command.help or "").replace("\b", "").strip() + "\n"]
        lines += ["| option | what it says | by default |", "|---|---|---|"]
        lines += [_row(p) for p in command.params] + [""]
    return "\n".join(lines)


def _argument(param: Any) -> str:
    if param.param_type_name != "argument":
        return ""
    name = param.name.upper() + "..." * (param.nargs == -1)
    return name if param.required else f"[{name}]"


def _row(param: Any) -> str:
    name = _argument(param) or ", ".join(param.opts + param.secondary_opts)
    default = param.default
    empty = default is None or default is False or callable(default) or str(default) in ("", "()")
    said = " ".join(str(getattr(param, "help", "") or "").split())
    said = re.sub(r"(?<!\S)--\w+", r"`\g<0>`", re.sub(r"([|<*])", r"\\\1", said))
    shown = "" if empty else f"`{default}`".replace("\n", "\\n")
    return f"| `{name}` | {said} | {shown} |"
