"""The organisms by name."""

from __future__ import annotations

from vlm_lens.zoo.train.fuyu import Fuyu
from vlm_lens.zoo.train.idefics2 import Idefics2
from vlm_lens.zoo.train.llava import Llava
from vlm_lens.zoo.train.organism import Organism

__all__ = ["NAMES", "ORGANISMS", "find"]

ORGANISMS: tuple[type[Organism], ...] = (Llava, Idefics2, Fuyu)
NAMES: tuple[str, ...] = tuple(n for o in ORGANISMS for n in (o.language_name, o.name))


def find(name: str) -> type[Organism]:
    """Return the organism that a model belongs to.

    Raises:
        KeyError: No model of that name is trained here.
    """
    for organism in ORGANISMS:
        if name in (organism.name, organism.language_name):
            return organism
    raise KeyError(f"no model called {name!r} is trained here; there are {', '.join(NAMES)}")
