"""The small models that ship with the package.

They are ordinary Hugging Face folders: load them with plain transformers, or with the library.
`python -m vlm_lens.zoo.train toy-llava` trains one again from nothing; the weights of toy-induction
are written down, by `python -m vlm_lens.zoo.induction`.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["names", "path", "planted"]

_MODELS = Path(__file__).parent / "models"


def names() -> list[str]:
    """List the names of the shipped models."""
    return sorted(p.parent.name for p in _MODELS.glob("*/config.json"))


def path(name: str) -> Path:
    """Return the folder of a shipped model.

    Args:
        name: The model's name, for example `"toy-llava"`.

    Returns:
        A folder that `AutoModelForImageTextToText.from_pretrained` (or `AutoModelForCausalLM`
        for a language model) loads.

    Raises:
        KeyError: If no model of that name is shipped.
    """
    known = names()
    if name not in known:
        listing = ", ".join(known) or "none: run `python -m vlm_lens.zoo.train toy-llava`"
        raise KeyError(f"no shipped model is called {name!r}; the shipped models are: {listing}")
    return _MODELS / name


def planted(name: str) -> str:
    """Say what training, or a hand, has put into a shipped model, as its card does.

    A reader of its numbers must know: what was planted is no finding.

    Args:
        name: The model's name.

    Returns:
        A phrase, for example `"nothing"`.

    Raises:
        KeyError: If no model of that name is shipped.
    """
    card = (path(name) / "README.md").read_text(encoding="utf-8")
    [said] = re.findall(r"^\| planted \| (.+) \|$", card, re.MULTILINE)
    return said
