"""Lines of long tables kept in a folder, so that a check that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER: Path | None = None  # where they are kept; nowhere, unless a folder is given


@cache
def code() -> str:
    """A digest of the code that lines are made by, and of the versions that it runs on."""
    import torch
    import transformers

    found = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode())
    for folder in ("vlm_lens", "tests/families", "tests/reach", "scripts/docs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.update(path.read_bytes())
    found.update((ROOT / "tests" / "tiny.py").read_bytes())
    return found.hexdigest()[:16]


def kept(name: str, make: Callable[[], Any]) -> Any:
    """What JSON can hold of a line, made once for the code as it is.

    Args:
        name: The table and the line.
        make: What makes it.
    """
    if FOLDER is None:
        return make()
    path = FOLDER / code() / f"{name.replace('/', '_')}.json"
    if path.exists():
        return json.loads(path.read_text())
    found = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".part")
    whole.write_text(json.dumps(found))
    whole.replace(path)
    return found
