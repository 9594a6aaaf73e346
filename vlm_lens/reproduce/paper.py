"""The numbers that Luo et al. 2025 (arXiv 2410.22330) print, as tables, with where they stand.

Facts only: no text, data or code of the paper. `source()` says of each file what it holds and how
exact it is.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from vlm_lens.errors import VLMLensError, near_matches
from vlm_lens.terms import MEAN

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "MODELS",
    "decodings",
    "lookup",
    "outputs",
    "phase_curves",
    "source",
    "table",
    "tables",
]

MODELS = ("LLaVA-v1.5", "Mantis-Fuyu", "Idefics2")
_HERE = files("vlm_lens.reproduce") / "reference"


@cache
def source() -> dict[str, Any]:
    """The paper, what each file holds, and the blocks at which its models were patched."""
    return json.loads((_HERE / "source.json").read_text(encoding="utf-8"))


def tables() -> pd.DataFrame:
    """Every number of the paper's tables: `table, model, method, task, quantity, value`.

    `model` is empty where a number belongs to none; `quantity` is `accuracy` (0 to 1), `cosine`,
    `share overriding` (0 to 1), `seconds` or `gigabytes`. The task `mean` is the paper's own
    average.
    """
    return _read("tables").copy()


def table(name: str, model: str | None = None) -> pd.DataFrame:
    """The numbers of one table.

    Args:
        name: For example `"table2"`.
        model: One of `MODELS`, with what belongs to no model; all if None.

    Raises:
        VLMLensError: No such table among the data.
    """
    whole = _read("tables")
    known = list(dict.fromkeys(whole["table"]))
    if name not in known:
        raise VLMLensError(
            f"There are no numbers of {name!r}; there are: {', '.join(known)}."
            + near_matches(name, known)
        )
    mine = whole[whole["table"] == name]
    if model is not None:
        mine = mine[mine["model"].isin(["", model])]
    return mine.reset_index(drop=True)


def lookup(
    name: str, model: str, method: str, task: str = MEAN, quantity: str = "accuracy"
) -> float | None:
    """One number; None where the paper has none.

    Args:
        name: The table.
        model: One of `MODELS`, or empty.
        method: The row, as the paper calls it.
        task: The column.
        quantity: As in `tables`.
    """
    mine = table(name)
    found = mine[
        (mine["model"] == model)
        & (mine["method"] == method)
        & (mine["task"] == task)
        & (mine["quantity"] == quantity)
    ]
    return None if found.empty else float(found["value"].iloc[0])


def phase_curves() -> pd.DataFrame:
    """Figure 14, digitised: `task, modality, layer, input, task_word, answer`, error about 0.01.

    Idefics2; a layer is `"embed"` or a 0-based block, by its output, 33 layers in all.
    """
    return _read("phase_curves").copy()


def decodings() -> pd.DataFrame:
    """Most likely tokens: `source, task, specification, layer, rank, token`."""
    return _read("decodings").copy()


def outputs() -> pd.DataFrame:
    """Printed outputs of the qualitative figures: `figure, query, method, output`."""
    return _read("outputs").copy()


@cache
def _read(name: str) -> pd.DataFrame:
    import pandas as pd

    numbers = {
        "tables": ("value",),
        "phase_curves": ("input", "task_word", "answer"),
        "decodings": ("rank",),
        "outputs": (),
    }[name]
    with (_HERE / f"{name}.csv").open("r", encoding="utf-8", newline="") as file:
        # a token may be the text None: nothing but an empty cell is missing
        read = pd.read_csv(file, dtype=str, keep_default_na=False)
    for column in numbers:
        read[column] = pd.to_numeric(read[column].replace("", None))
    if "layer" in read:
        blocks = {layer: int(layer) for layer in read["layer"] if layer.isdecimal()}
        read["layer"] = [blocks.get(layer, layer or None) for layer in read["layer"]]
    return read
