"""The experiments by their ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from vlm_lens.errors import near_matches
from vlm_lens.reproduce.experiment import Experiment
from vlm_lens.reproduce.setup import ReproduceError

__all__ = ["choose", "experiments"]


@cache
def experiments() -> Mapping[str, Experiment]:
    """Every experiment by its id, tables first."""
    from vlm_lens.reproduce.experiments import (
        base_model_vectors,
        cost,
        decodings,
        ensembles,
        instructions,
        other_methods,
        phases,
        qualitative,
        space,
        transfer,
    )

    modules = (
        transfer, base_model_vectors, instructions, ensembles, decodings, phases, space, cost,
        qualitative, other_methods,
    )  # fmt: skip
    every = [one for module in modules for one in module.EXPERIMENTS]
    every.sort(key=lambda e: (not e.id.startswith("table"), _number(e.id), e.id))
    return {one.id: one for one in every}


def _number(name: str) -> int:
    digits = "".join(c for c in name if c.isdigit())
    return int(digits) if digits else 10**6


def choose(ids: Iterable[str]) -> tuple[Experiment, ...]:
    """The experiments meant by ids, in the order of `experiments`.

    Args:
        ids: Ids (`"table2"`), rows of the list of experiments (`"E4"`), or `"all"`: every one
            of the paper's. What goes beyond the paper is asked for by its id.

    Raises:
        ReproduceError: An id that there is not.
    """
    known = experiments()
    rows = sorted({row for one in known.values() for row in one.rows}, key=_number)
    chosen = set()
    for name in ids:
        if name == "all":
            chosen |= {one.id for one in known.values() if one.rows}
        elif name in known:
            chosen.add(name)
        elif name.upper() in rows:
            chosen |= {one.id for one in known.values() if name.upper() in one.rows}
        else:
            raise ReproduceError(
                f"There is no experiment {name!r}.{near_matches(name, [*known, *rows, 'all'])} "
                f"There are: {', '.join(known)}; the rows {', '.join(rows)}; and all."
            )
    if not chosen:
        raise ReproduceError("Name an experiment, for example table2, or all.")
    return tuple(one for one in known.values() if one.id in chosen)
