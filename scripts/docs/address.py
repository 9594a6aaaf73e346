"""Writes the repository's address wherever a reader is told to fetch it.

`python -m scripts.docs.address https://github.com/OWNER/vlm_lens` puts it into the `git clone`
lines of README.md and docs, and into the first cell of each notebook; without an address it says
which one stands there. As long as there is none, pages say `ADDRESS_OF_THIS_REPOSITORY`, and
notebooks ask.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NONE = "ADDRESS_OF_THIS_REPOSITORY"
_PLACES = {
    ".md": re.compile(r"(?<=git clone )\S+(?= vlm_lens\b)"),
    ".ipynb": re.compile(r"(?<=\"REPOSITORY = \\\")[^\"\\]*(?=\\\")"),
}


def places(root: Path = ROOT) -> dict[Path, list[str]]:
    """Files that say where the repository is -> what they say; notebooks say nothing as yet."""
    files = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    files += sorted((root / "tutorials").glob("*.ipynb"))
    found = {f: _PLACES[f.suffix].findall(f.read_text(encoding="utf-8")) for f in files}
    return {f: said for f, said in found.items() if said}


def write(address: str, root: Path = ROOT) -> list[Path]:
    """Writes the address into all of them.

    Args:
        address: What `git clone` takes; `NONE` takes an address back.
        root: The repository.

    Returns:
        The files that have changed.

    Raises:
        ValueError: It holds white space or quotes.
    """
    if not address or re.search(r"[\s\"'\\]", address):
        raise ValueError(f"{address!r} is no address: give one without spaces and quotes.")
    changed = []
    for file in places(root):
        text = file.read_text(encoding="utf-8")
        shown = "" if file.suffix == ".ipynb" and address == NONE else address
        new = _PLACES[file.suffix].sub(lambda _, shown=shown: shown, text)
        if new != text:
            file.write_text(new, encoding="utf-8")
            changed.append(file)
    return changed


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", nargs="?", help="what git clone takes")
    address = parser.parse_args(arguments).address
    files = places() if address is None else write(address)
    for file in files:
        said = f": {places()[file][0] or 'none'}" if address is None else ""
        print(f"{file.relative_to(ROOT)}{said}")


if __name__ == "__main__":
    main()
