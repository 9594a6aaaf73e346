"""Figures of a sweep: a measurement against the layer, or over layers and positions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vlm_lens.errors import VLMLensError, near_matches
from vlm_lens.figures.style import GREY, PALETTE, SEQUENTIAL, colour_scale, style

__all__ = ["sweep_figure"]

_FEW = 4  # lines of one label, from 5 values on a heatmap
_PANELS = 6
_TITLES = {
    "layer": "block (0-based)",
    "at": "position",
    "head": "head (0-based)",
    "scale": "scale",
    "vector": "vector",
    "row": "row, a prompt each",
    "kind": "point",
    "intervention": "intervention",
}
_ORDER = ("layer", "at", "head", "scale")  # which label goes along the x axis of lines


Record = Mapping[str, Any]


@dataclass(frozen=True)
class _Table:
    """Records by the labels that vary.

    Attributes:
        axes: The values of each such label.
        cells: The record of each combination.
        baseline: The records without intervention, one a row of the prompt.
        places: Value of the label `at` -> position and token.
        point: The point of all records, if it is one.
    """

    axes: Mapping[str, list[Any]]
    cells: Mapping[tuple, Record]
    baseline: Sequence[Record]
    places: Mapping[Any, tuple[int, str]]
    point: str | None

    def record(self, **labels: Any) -> Mapping[str, Any] | None:
        return self.cells.get(tuple(labels[a] for a in self.axes))


def sweep_figure(
    records: Sequence[Record],
    value: str | None = None,
    *,
    labels: Sequence[str],
    baseline: Sequence[Record] = (),
    places: Mapping[Any, tuple[int, str]] | None = None,
) -> go.Figure:
    """A measurement of a sweep: lines against one label, or a heatmap over two.

    Args:
        records: One a variant and row of the prompt: labels, then measurements.
        value: The column; by default the first measurement that is a number.
        labels: Which columns are labels.
        baseline: The measurements without intervention, one a row of the prompt.
        places: Value of the label `at` -> position and token, where it is one position of the text.

    Returns:
        The figure; a dotted line, or the subtitle, gives the value without interventions.

    Raises:
        VLMLensError: No such column, one without numbers, or more labels than a figure can show.
    """
    value = _column(records, labels, value)
    table = _table(records, labels, baseline, places or {})
    axes = sorted(table.axes, key=lambda a: _ORDER.index(a) if a in _ORDER else len(_ORDER))
    x, *rest = axes
    n_lines = 1
    for axis in rest:
        n_lines *= len(table.axes[axis])
    alike = all(axis in ("row", "vector", "kind") for axis in rest)
    if n_lines <= _FEW or (alike and n_lines <= len(PALETTE)):
        return _lines(table, value, x, rest)
    wide = max(rest, key=lambda a: (a in ("at", "head"), len(table.axes[a])))
    across, up = (wide, x) if x == "layer" else (x, wide)
    panels = [a for a in rest if a != wide]
    return _heatmaps(table, value, across, up, panels)


def _column(records: Sequence[Record], labels: Sequence[str], value: str | None) -> str:
    if not records:
        raise VLMLensError("This sweep has no records, so there is nothing to plot.")
    columns = list(records[0])
    kinds: dict[str, type] = {}
    for name in columns:
        column = [r.get(name) for r in records]
        if name not in (*labels, "row") and all(isinstance(v, int | float) for v in column):
            kinds[name] = float if any(isinstance(v, float) for v in column) else int
    if value is None:
        if not kinds:
            raise VLMLensError(f"Nothing that was measured is a number; the columns are {columns}.")
        return next((n for n, kind in kinds.items() if kind is float), next(iter(kinds)))
    if value not in columns:
        raise VLMLensError(
            f"There is no column {value!r}; there are {columns}." + near_matches(value, columns)
        )
    if value not in kinds:
        raise VLMLensError(f"{value!r} is no measured number; these are: {list(kinds)}.")
    return value


def _table(
    records: Sequence[Record],
    labels: Sequence[str],
    baseline: Sequence[Record],
    places: Mapping[Any, tuple[int, str]],
) -> _Table:
    rows = [_coordinates(r, labels) for r in records]
    names = [
        n for n in dict.fromkeys(k for r in rows for k in r) if len({r.get(n) for r in rows}) > 1
    ]
    names = _independent(rows, names) or ["layer"]
    axes = {n: _sorted(list(dict.fromkeys(r.get(n) for r in rows)), n, places) for n in names}
    cells: dict[tuple, Mapping[str, Any]] = {}
    for row, record in zip(rows, records, strict=True):
        place = tuple(row.get(n) for n in names)
        if place in cells:
            raise VLMLensError(
                "Several variants have the same labels, so a figure cannot tell them apart: give "
                "each its own, Variant(intervention, {'name': ...}), or plot to_dataframe()."
            )
        cells[place] = record
    points = {row.get("kind") for row in rows}
    return _Table(axes, cells, baseline, places, points.pop() if len(points) == 1 else None)


def _independent(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Labels that vary, without those that only repeat another one: a window's list of blocks."""
    kept = [n for n in names if n in _TITLES]
    for name in (n for n in names if n not in _TITLES):
        pairs = [{(r.get(k), r.get(name)) for r in rows} for k in kept]
        if not any(len(p) == len({a for a, _ in p}) == len({b for _, b in p}) for p in pairs):
            kept.append(name)
    return [n for n in names if n in kept]


def _coordinates(record: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """A record's labels; points of one kind in several layers count as one."""
    found = {n: record[n] for n in (*labels, "row") if n in record}
    if "point" in found:
        found["kind"] = re.sub(r"blocks\.\d+\.", "blocks.*.", found.pop("point"))
    return found


def _sorted(values: list[Any], name: str, places: Mapping[Any, Any]) -> list[Any]:
    if name == "at" and all(v in places for v in values):
        return sorted(values, key=lambda v: places[v][0])
    if all(isinstance(v, int | float) for v in values):
        return sorted(values)
    return values


def _title(table: _Table, axis: str) -> str:
    if axis == "at" and _known(table):
        return "position (0-based) and token"
    return _TITLES.get(axis, axis)


def _known(table: _Table) -> bool:
    return "at" in table.axes and all(v in table.places for v in table.axes["at"])


def _name(table: _Table, axis: str, entry: Any) -> str:
    """What a value of a label is called on an axis, in a legend and when pointed at."""
    if axis == "at" and entry in table.places:
        position, token = table.places[entry]
        name = f"{position} {_seen(token)}"
        return name if str(entry) == str(position) else f"{entry}: {name}"
    return _seen(str(entry)) if entry is not None else "none"


def _seen(text: str) -> str:
    text = text.replace("\n", "⏎").replace("<", "&lt;")
    return text if len(text) <= 40 else text[:39] + "…"


def _lines(table: _Table, value: str, x: str, rest: Sequence[str]) -> go.Figure:
    fig, colours = go.Figure(), list(PALETTE.values())
    ticks = table.axes[x]
    numeric = all(isinstance(t, int | float) for t in ticks)
    names = [_name(table, x, t) for t in ticks]
    combinations = list(product(*(table.axes[a] for a in rest)))
    for i, labels in enumerate(combinations):
        chosen = dict(zip(rest, labels, strict=True))
        records = [table.record(**{x: t}, **chosen) for t in ticks]
        label = ", ".join(_called(table, a, v) for a, v in chosen.items())
        colour = colours[i % len(colours)]
        fig.add_scatter(
            x=ticks if numeric else names,
            y=[None if r is None else r[value] for r in records],
            name=label,
            showlegend=bool(label),
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"size": 7},
            customdata=[[n, _token(r)] for n, r in zip(names, records, strict=True)],
            hovertemplate=(
                f"<b>{_short(x)} %{{customdata[0]}}</b>"
                f"<br>{_html(value)} %{{y:.4g}}%{{customdata[1]}}"
                + (f"<br>{_html(label)}" if label else "")
                + "<extra></extra>"
            ),
        )
    plain = _plain(table, value)
    for i, (row, height) in enumerate(plain.items()):
        many = len(plain) > 1
        of_row = [c for c, labels in enumerate(combinations) if labels == (row,)]
        colour = colours[of_row[0] % len(colours)] if many and of_row else GREY
        fig.add_hline(y=height, line={"color": colour, "dash": "dot", "width": 1.5})
        # an entry in the legend, whose own points lie nowhere
        if i == 0:
            line = {"color": GREY, "dash": "dot", "width": 1.5}
            fig.add_scatter(
                x=[None], y=[None], mode="lines", line=line, name="without intervention",
                showlegend=True, hoverinfo="skip",
            )  # fmt: skip
    rotated = not numeric and max(map(len, names)) * len(names) > 80
    style(fig, title=_html(_headline(table, value)), x=_title(table, x),
          y=_html(value), height=440 + 60 * rotated)  # fmt: skip
    fig.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0})
    fig.update_layout(margin_t=100)
    if numeric and all(isinstance(t, int) for t in ticks):
        fig.update_xaxes(dtick=_step(len(ticks)), range=[ticks[0] - 0.4, ticks[-1] + 0.4])
    elif rotated:
        fig.update_xaxes(tickangle=-60)
    fig.update_xaxes(showgrid=False, zeroline=False)
    if _is_probability(value, [*table.cells.values(), *table.baseline]):
        fig.update_yaxes(range=[0, 1.04], dtick=0.2, tickformat=".1f")
    return fig


def _heatmaps(table: _Table, value: str, across: str, up: str, panels: Sequence[str]) -> go.Figure:
    groups = list(product(*(table.axes[a] for a in panels)))
    if len(groups) > _PANELS:
        raise VLMLensError(
            f"The labels {list(table.axes)} all vary, which is {len(groups)} heatmaps; a figure "
            f"shows {_PANELS}: sweep fewer at once, or plot to_dataframe()."
        )
    columns, rows = table.axes[across], table.axes[up]
    names, up_names = ([_name(table, a, v) for v in table.axes[a]] for a in (across, up))
    titles = [
        ", ".join(_called(table, a, v) for a, v in zip(panels, group, strict=True))
        for group in groups
    ]
    fig = make_subplots(
        rows=len(groups), cols=1, shared_xaxes=True, subplot_titles=titles if panels else None,
        vertical_spacing=0.16 / len(groups),
    )  # fmt: skip
    for i, group in enumerate(groups):
        chosen = dict(zip(panels, group, strict=True))
        cells = [[table.record(**{across: c, up: r}, **chosen) for c in columns] for r in rows]
        fig.add_heatmap(
            x=list(range(len(columns))),
            y=list(range(len(rows))),
            z=[[None if c is None else c[value] for c in row] for row in cells],
            customdata=[
                [[up_names[r], names[c], _token(cell)] for c, cell in enumerate(row)]
                for r, row in enumerate(cells)
            ],
            hovertemplate=(
                f"<b>{_short(up)} %{{customdata[0]}}, {_short(across)} %{{customdata[1]}}</b>"
                f"<br>{_html(value)} %{{z:.4g}}%{{customdata[2]}}<extra></extra>"
            ),
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            row=i + 1,
            col=1,
        )
    numbers = [len(table.baseline), *_plain(table, value).values()]
    subtitle = f"Without intervention: {numbers[1]:.3g}" if numbers[0] == 1 and numbers[1:] else ""
    slanted = max(map(len, names)) > 4
    height = len(groups) * (60 + min(max(28 * len(rows), 160), 640)) + 140 + 60 * slanted
    style(fig, title=_html(_headline(table, value)), subtitle=subtitle or None, height=height)
    fig.update_annotations(font_size=13, x=0, xanchor="left")
    colours: dict[str, Any] = {"colorscale": SEQUENTIAL}
    shown = [r[value] for r in table.cells.values()]
    if _is_probability(value, table.cells.values()) or min(shown) < 0:
        colours = colour_scale(shown)
    bar = {"title": {"text": _html(value), "side": "right"}, "thickness": 14, "outlinewidth": 0}
    fig.update_layout(coloraxis={"colorbar": bar, **colours})
    fig.update_layout(margin_t=84 + 24 * bool(panels))
    fig.update_xaxes(
        showgrid=False, zeroline=False, tickangle=-60 if slanted else 0,
        **_ticks(columns, names),
    )  # fmt: skip
    fig.update_yaxes(
        showgrid=False, zeroline=False, title_text=_title(table, up),
        **_ticks(rows, up_names),
    )  # fmt: skip
    fig.update_xaxes(title_text=_title(table, across), row=len(groups), col=1)
    return fig


def _ticks(values: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    numeric = all(isinstance(v, int) for v in values)
    step = _step(len(values)) if numeric else max(1, -(-len(values) // 60))
    return {"tickvals": list(range(0, len(values), step)), "ticktext": list(names)[::step]}


def _is_probability(value: str, records: Iterable[Record]) -> bool:
    """Whether a column is called one and holds nothing else: a difference of two is none."""
    numbers = [r[value] for r in records if value in r]
    return value.startswith("prob") and all(0 <= n <= 1.0001 for n in numbers)


def _step(n: int) -> int:
    return 1 if n <= 20 else 2 if n <= 40 else 4


def _plain(table: _Table, value: str) -> dict[int, float]:
    """The value without interventions, by row of the prompt."""
    return {i: r[value] for i, r in enumerate(table.baseline) if value in r}


def _headline(table: _Table, value: str) -> str:
    return value if table.point is None else f"{value} by {table.point}"


def _called(table: _Table, axis: str, entry: Any) -> str:
    name = _name(table, axis, entry)
    return name if axis in ("kind", "vector", "intervention") else f"{_short(axis)} {name}"


def _short(axis: str) -> str:
    return {"layer": "block", "at": "position"}.get(axis, axis)


def _token(record: Mapping[str, Any] | None) -> str:
    """What the most likely token is, for the hover."""
    token = None if record is None else record.get("token")
    return "" if token is None else f"<br>next token {_html(repr(token))}"


def _html(text: str) -> str:
    return text.replace("<", "&lt;")
