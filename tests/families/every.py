"""The tiny models of every family, by name."""

from __future__ import annotations

import importlib
from pathlib import Path

BUILDERS = {
    path.stem.removeprefix("tiny_"): importlib.import_module(f"families.{path.stem}")
    for path in sorted(Path(__file__).parent.glob("tiny_*.py"))
    if path.stem not in ("tiny_parts", "tiny_words")
}
