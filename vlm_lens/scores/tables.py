"""Scores as tables: ranked, or all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from vlm_lens.integers import as_integer
from vlm_lens.scores.places import Place
from vlm_lens.scores.refusal import ScoresError

if TYPE_CHECKING:
    import pandas as pd


def ranked(
    values: xr.DataArray, places: Sequence[Place] | None, space: str, name: str, k: int,
    largest: str,
) -> pd.DataFrame:  # fmt: skip
    """The largest values, one row each, with what stands there.

    Args:
        values: The numbers.
        places: What stands at each entry of the axis `position`, if there is one.
        space: Whose positions they are.
        name: What the numbers are.
        k: How many.
        largest: `"value"` or `"magnitude"`.

    Raises:
        ScoresError: Another `largest`, or `k` below 1.
    """
    import pandas as pd

    if largest not in ("value", "magnitude"):
        raise ScoresError(f"largest is 'value' or 'magnitude', not {largest!r}.")
    k = as_integer(k, "How many scores top gives", ScoresError)
    if k < 1:
        raise ScoresError(f"top gives at least 1 score, not {k}.")
    axes = tuple(map(str, values.dims))
    flat = values.to_numpy().reshape(-1)
    key = np.abs(flat) if largest == "magnitude" else flat
    key = np.where(np.isnan(key), -np.inf, key)
    k = min(k, len(flat))
    order = np.argpartition(-key, k - 1)[:k]
    order = order[np.argsort(-key[order], kind="stable")]
    index = np.unravel_index(order, values.shape) if values.shape else ((),) * 0
    columns: dict[str, Any] = {
        axis: values[axis].to_numpy()[i] for axis, i in zip(axes, index, strict=True)
    }
    if places is not None:
        here = [places[i] for i in index[axes.index("position")]]
        columns |= {
            "kind": [p.kind for p in here],
            "token": [p.token for p in here],
            "patch": [p.patch for p in here],
            "pixels": [p.pixels for p in here],
        }
        if space != "text":
            columns["row"] = [p.row for p in here]
    return pd.DataFrame({**columns, name: flat[order]})


def as_table(values: xr.DataArray, places: Sequence[Place] | None, name: str) -> pd.DataFrame:
    """All values, one row each: a column for each axis, and the value under its name."""
    import pandas as pd

    table = values.rename(name).to_dataframe().reset_index()
    if places is not None:
        about = pd.DataFrame(
            {"position": p.position, "row": p.row, "kind": p.kind, "token": p.token} for p in places
        )
        on = ["position", "row"] if "row" in table else ["position"]
        about = about if "row" in table else about.drop(columns="row")
        table = table.merge(about, on=on, how="left")
    columns = [c for c in table.columns if c != name]
    return table[[*columns, name]]


__all__ = ["as_table", "ranked"]
