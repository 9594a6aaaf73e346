"""What a sweep has measured, as scores: its labels become axes."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from PIL import Image

from vlm_lens.layout.layout import Layout
from vlm_lens.scores.refusal import ScoresError
from vlm_lens.scores.scores import Scores, scores

_OWN = {"layer": "layer", "head": "head", "at": "position", "scale": "scale"}  # label -> axis


@dataclass(frozen=True)
class Swept:
    """What a sweep has measured, as `SweepResult` has it.

    Attributes:
        records: One dictionary for each variant and row of the prompt: labels, then measurements.
        label_names: Which columns are labels.
        baseline: The measurements of the run without interventions, one a row of the prompt.
        places: Label in the column `at` -> whose positions, and (row, position) for each row.
        layouts: The layout of each row of the prompt.
        pictures: The pictures of each row of the prompt.
    """

    records: Sequence[Mapping[str, Any]]
    label_names: tuple[str, ...]
    baseline: Sequence[Mapping[str, Any]]
    places: Mapping[str, tuple[str, tuple[tuple[int, int], ...]]]
    layouts: tuple[Layout, ...]
    pictures: Sequence[Sequence[Image.Image]]


def scores_of(result: Swept, value: str | None, row: int) -> Scores:
    """The measurements of one row of the prompt, by what varies; see `SweepResult.scores`."""
    records = [r for r in result.records if r.get("row", 0) == row]
    if not records:
        raise ScoresError(f"This sweep measured nothing at row {row} of its prompt.")
    column = _column(result, records, value)
    labels = [_labels(r, result.label_names) for r in records]
    varying = [n for n in dict.fromkeys(k for one in labels for k in one) if _varies(labels, n)]
    spaces = {result.places[one["at"]][0] if one.get("at") in result.places else None
              for one in labels}  # fmt: skip
    placed = len(spaces) == 1 and None not in spaces and "at" in varying
    numbered = not placed and _are_positions([one.get("position") for one in labels], result, row)
    own = [n for n in varying if n in _OWN and (n != "at" or placed)]
    if numbered and "position" in varying:
        own.append("position")
    others = [n for n in varying if n not in own]
    coordinates: list[dict[str, Hashable]] = []
    for one in labels:
        mine = {_OWN.get(n, n): _number(one.get(n)) for n in own}
        if placed:
            mine["position"] = result.places[one["at"]][1][row]
        if others or not own:
            mine["variant"] = ", ".join(f"{n} {one[n]}" for n in others if n in one) or "all"
        coordinates.append(mine)
    axes = {axis: _sorted([c[axis] for c in coordinates]) for axis in coordinates[0]}
    values = np.full([len(v) for v in axes.values()], np.nan, dtype=np.float32)
    index = {axis: {v: i for i, v in enumerate(known)} for axis, known in axes.items()}
    seen = set()
    for record, one in zip(records, coordinates, strict=True):
        cell = tuple(index[axis][v] for axis, v in one.items())
        if cell in seen:
            raise ScoresError(
                "Several variants have the same labels, so scores cannot tell them apart: give "
                "each its own, Variant(intervention, {'name': ...})."
            )
        seen.add(cell)
        values[cell] = float(record[column])
    plain = result.baseline[row].get(column) if row < len(result.baseline) else None
    space = spaces.pop() if placed else "text"
    pairs = axes.get("position", ())
    known = {**axes, "position": [p for _, p in pairs]} if placed else axes
    rows = [r for r, _ in pairs] if placed and space != "text" else None
    return scores(
        values, known, rows, name=column,
        layout=result.layouts[row] if result.layouts else None,
        pictures=tuple(result.pictures[row]) if result.pictures else (), space=space,
        about={} if plain is None else {"without intervention": plain},
    )  # fmt: skip


def _column(result: Swept, records: Sequence[Mapping[str, Any]], value: str | None) -> str:
    numbers = [
        name
        for name in records[0]
        if name not in (*result.label_names, "row")
        and all(isinstance(r.get(name), int | float) for r in records)
    ]
    if value is None:
        floats = [n for n in numbers if any(isinstance(r[n], float) for r in records)]
        if not numbers:
            raise ScoresError(
                f"Nothing that was measured is a number; the columns are {list(records[0])}."
            )
        return (floats or numbers)[0]
    if value not in numbers:
        raise ScoresError(f"{value!r} is no measured number; these are: {numbers}.")
    return value


def _labels(record: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A record's labels; points of one kind in several layers count as one, windows as theirs."""
    found = {n: record[n] for n in names if n in record}
    if "point" in found and "layer" in found:
        found["point"] = re.sub(r"blocks\.\d+\.", "blocks.*.", found["point"])
    if "layers" in found and "layer" in found:
        del found["layers"]  # a window is known by its first block
    return found


def _are_positions(values: Sequence[Any], result: Swept, row: int) -> bool:
    """Whether a label of the user's is a position of the prompt in each variant."""
    if not result.layouts:
        return False
    places = range(len(result.layouts[row]))
    return all(isinstance(v, Integral) and int(v) in places for v in values)


def _varies(labels: Sequence[Mapping[str, Any]], name: str) -> bool:
    return len({one.get(name) for one in labels}) > 1


def _number(value: Any) -> Hashable:
    """Heads are labelled by a string of numbers."""
    whole = isinstance(value, Integral) or (isinstance(value, str) and value.isdecimal())
    return int(value) if whole and not isinstance(value, bool) else value


def _sorted(values: Sequence[Any]) -> list[Any]:
    once = list(dict.fromkeys(values))
    return sorted(once) if all(isinstance(v, int | float | tuple) for v in once) else once
