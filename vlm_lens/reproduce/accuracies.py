"""Accuracies of a run of cross-modal patching beside the paper's: rows of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from vlm_lens.reproduce import paper
from vlm_lens.reproduce.experiment import Finding
from vlm_lens.terms import BESIDE_ACCURACY, BEST_TOKEN, MAJORITY, NO_CONTEXT, PATCH, PROMPT

if TYPE_CHECKING:
    from vlm_lens.recipes import TransferResult

__all__ = ["CHOSEN", "accuracies", "better", "blocks", "controls", "joined"]

CHOSEN = (
    "The block is chosen on the validation rows for every source, query and form of its own, and "
    "listed; the paper patches one block a model."
)
_SHOWN = (NO_CONTEXT, PROMPT, PATCH, MAJORITY, BEST_TOKEN)


def accuracies(
    result: TransferResult,
    method: str,
    table: str,
    model: str,
    row: str,
    *,
    paper_method: str | None = None,
) -> Iterator[dict[str, Any]]:
    """One method's accuracies by task, with all that is known of each, beside a row of the paper.

    Args:
        result: What CrossModalPatch gave.
        method: The method in the result.
        table: The paper's table; empty where the paper has no such row.
        model: The paper's model.
        row: What the row is called in the comparison.
        paper_method: The row in the paper; `row` if None.
    """
    mine = result.table[result.table["method"] == method]
    for one in mine.to_dict("records"):
        yield {
            "method": row,
            "task": one["task"],
            "here": one["accuracy"],
            **{key: one[key] for key in BESIDE_ACCURACY},
            "paper": paper.lookup(table, model, paper_method or row, one["task"])
            if table
            else None,
            "paper_model": model if table else "",
        }


def controls(
    result: TransferResult, of: str = "", *, shown: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """The accuracies of every control of a run.

    Args:
        result: The run.
        of: Which run, where a comparison has several.
        shown: Methods that stand in the comparison under names of their own.
    """
    for method in dict.fromkeys(result.table["method"]):
        if method not in (*_SHOWN, *shown):
            where = f", {of}" if of else ""
            yield from accuracies(result, method, "", "", f"control{where}: {method}")


def blocks(model: str, results: Mapping[str, TransferResult]) -> Iterator[dict[str, str]]:
    """Which block each run patched, beside the paper's: rows of `Comparison.texts`.

    Args:
        model: The paper's model.
        results: The runs, under what they are called in the comparison.
    """
    there = paper.source()["layers"].get(model)
    for name, result in results.items():
        yield {
            "what": f"{name}: block that is patched (0-based)",
            "here": f"{result.layer} of {result.provenance['model']['layers']}",
            "paper": f"{there['patched']} of {there['layers']}" if there else "",
            "paper_model": model,
        }


def joined(results: Mapping[str, TransferResult]) -> TransferResult:
    """Runs on the same queries as one, so that differences between them are paired.

    Args:
        results: The runs by name; a method of one is called `"<name>: <method>"` in the whole.
    """

    def put(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
        named = zip(results, tables, strict=True)
        return pd.concat([t.assign(method=f"{name}: " + t["method"]) for name, t in named])

    first, *_ = results.values()
    tables = {"predictions": put(one.predictions for one in results.values())}
    return replace(first, table=put(one.table for one in results.values()), tables=tables)


def better(
    statement: str,
    there: str,
    result: TransferResult,
    one: str,
    other: str,
    *,
    named: bool = False,
) -> Finding:
    """The finding that a method does better than another: the interval of their difference says.

    Args:
        statement: What is claimed.
        there: The paper's numbers.
        result: The run, or several as one.
        one: The method that is to do better.
        other: The other.
        named: Whether the numbers here are given with the names of the methods.
    """
    gain, numbers = result.difference(one, other), map(result.accuracy, (one, other))
    if named:
        values = ", ".join(f"{m} {a:.2f}" for m, a in zip((one, other), numbers, strict=True))
    else:
        values = " against ".join(f"{a:.2f}" for a in numbers)
    return Finding(statement, there, f"{values}: {gain}", gain.low > 0)
