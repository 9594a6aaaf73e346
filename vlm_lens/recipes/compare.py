"""Results of one recipe on several models, in one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import reduce

import pandas as pd

from vlm_lens.recipes.result import RecipeError, Result

__all__ = ["compare"]

_PLACES = ("layer", "head", "position")  # numbers that say where, not how much


def compare(*results: Result | Sequence[Result], number: str | None = None) -> Result:
    """Results of the same recipe, say on two models, side by side: a column each.

    Rows are matched by what is text in them, and by layer, head and position; where a result has
    no such row, nothing stands.

    Args:
        *results: Two results or more, or one list of them.
        number: The column of numbers that is compared; `accuracy` or else the first by default.

    Returns:
        A result whose `table` has the key and a column for each result, named by its model; it
        plots and saves itself like any other, with the provenance of all.

    Raises:
        RecipeError: Fewer than two, of different recipes, no such column, or rows that are not
            told apart.
    """
    if len(results) == 1 and isinstance(results[0], Sequence):
        (results,) = results
    if len(results) < 2 or not all(isinstance(one, Result) for one in results):
        raise RecipeError("compare needs two results or more: compare(a, b), or a list of them.")
    kinds = {one.provenance.get("recipe", {}).get("class", type(one).__name__) for one in results}
    if len(kinds) > 1:
        raise RecipeError(f"Results of different recipes are not compared: {sorted(kinds)}.")
    (kind,) = kinds
    number = number or _first_number(results[0].table)
    columns = [_column(one, name, number) for one, name in zip(results, _names(results),
                                                               strict=True)]  # fmt: skip
    table = reduce(lambda a, b: a.join(b, how="outer", sort=False), columns)
    return Result(
        table.reindex(list(dict.fromkeys(k for c in columns for k in c.index))).reset_index(),
        values={"number": number, "recipe": kind},
        notes=(f"{number} of {kind}, a column a result.", *results[0].notes),
        provenance={"results": [dict(one.provenance) for one in results]},
    )


def _first_number(table: pd.DataFrame) -> str:
    numbers = [c for c in table if table[c].dtype.kind == "f" and c not in _PLACES]
    if not numbers:
        raise RecipeError("These results have no column of numbers to compare.")
    return "accuracy" if "accuracy" in numbers else str(numbers[0])


def _names(results: Sequence[Result]) -> list[str]:
    """What the columns are called: the models' names, numbered where two are the same."""
    names = [str(one.provenance.get("model", {}).get("name") or f"result {i}")
             for i, one in enumerate(results, 1)]  # fmt: skip
    twice = {name for name, count in Counter(names).items() if count > 1}
    return [f"{n} ({i})" if n in twice else n for i, n in enumerate(names, 1)]


def _column(result: Result, name: str, number: str) -> pd.DataFrame:
    table = result.table
    if number not in table or table[number].dtype.kind not in "if":
        held = [c for c in table if table[c].dtype.kind in "if"]
        raise RecipeError(f"{name} has no column of numbers {number!r}; it has {held}.")
    keys = [c for c in table if c != number and (table[c].dtype.kind not in "ifb" or c in _PLACES)]
    keys = [c for c in keys if table[c].nunique() > 1] or keys[:1] or [table.columns[0]]
    if table.duplicated(keys).any():
        raise RecipeError(f"Rows of {name} are not told apart by {', '.join(map(str, keys))}.")
    if len(keys) == 1:
        index = pd.Index(table[keys[0]], name=keys[0])
    else:
        joined = table[keys].astype(str).agg(", ".join, axis=1)
        index = pd.Index(joined, name=", ".join(map(str, keys)))
    return pd.DataFrame({name: table[number].to_numpy()}, index=index)
