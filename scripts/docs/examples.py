"""Runs the Python blocks of a page, and writes what they print below them.

`python -m scripts.docs.examples docs/index.md README.md` runs each page from top to bottom and
replaces each block marked `text` that follows a Python block by what that one prints; with
`--check` it only says which are stale. A block of code with nothing below it is run all the same.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n?^```text\n(?P<shown>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
_DECIMAL = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Attributes:
        line: The line of the page on which its fence stands, from 1.
        code: What it says.
        shown: What the page says that it prints; None where it says nothing.
        span: From where to where in the page's text `shown` stands.
    """

    line: int
    code: str
    shown: str | None
    span: tuple[int, int]


def blocks(page: Path) -> list[Block]:
    """The Python blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(text[: m.start()].count("\n") + 1, m["code"], m["shown"], m.span("shown"))
        for m in _BLOCK.finditer(text)
    ]


def run(page: Path, namespace: dict | None = None) -> list[str]:
    """What each block of a page prints, run one after the other in one namespace.

    Args:
        page: The page. Its blocks run in the current folder.
        namespace: Where the blocks' names are put; one of its own if None.
    """
    namespace = {} if namespace is None else namespace
    printed = []
    for block in blocks(page):
        # padded, so that a failure names the line of the page
        code = compile("\n" * block.line + block.code, str(page), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, namespace)
        printed.append(tidy(out.getvalue()))
    return printed


def tidy(printed: str) -> str:
    """A text without white space at the ends of its lines and at its own."""
    return "\n".join(line.rstrip() for line in printed.strip("\n").splitlines()).rstrip() + "\n"


def alike(shown: str, printed: str, *, rel: float = 1e-3) -> bool:
    """Whether two texts are the same but for the last digits of decimal numbers.

    Kernels differ by processor, and so do the last digits of what a model gives.
    """
    if _DECIMAL.sub("", shown) != _DECIMAL.sub("", printed):
        return False
    pairs = zip(_DECIMAL.findall(shown), _DECIMAL.findall(printed), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=rel, abs_tol=rel) for a, b in pairs)


def filled(page: Path, printed: Sequence[str]) -> str:
    """The text of a page with what its blocks print in the places that show it.

    What is alike but for the rounding of numbers stays as it is.
    """
    text = page.read_text(encoding="utf-8")
    for block, output in reversed(list(zip(blocks(page), printed, strict=True))):
        if block.shown is not None and not alike(block.shown, output):
            start, end = block.span
            text = text[:start] + output + text[end:]
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Fills pages, or checks them; returns 1 where the check finds a stale one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="+", type=Path, help="Markdown files")
    parser.add_argument("--check", action="store_true", help="say what is stale; write nothing")
    options = parser.parse_args(arguments)
    stale, here = [], Path.cwd()
    for page in map(Path.resolve, options.pages):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)  # pages write files
            try:
                text = filled(page, run(page))
            finally:
                os.chdir(here)
        if text != page.read_text(encoding="utf-8"):
            stale.append(page.name)
            if not options.check:
                page.write_text(text, encoding="utf-8")
    if stale:
        print("stale:" if options.check else "wrote", ", ".join(stale), file=sys.stderr)
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
