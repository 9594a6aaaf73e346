"""The axes of a plotly figure as axes of matplotlib: domains, categories, ticks, references."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_lens.figures.colour import colour_channels
from vlm_lens.figures.style import INK, plain_lines

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

POINTS = 0.72  # of one pixel: the drawing has 100 pixels to the inch
_FORMAT = re.compile(r"^[-+]?\.?\d*[df%eg]$")


def rgba(colour: str | None, opacity: float | None = None) -> Any:
    """A colour of plotly as matplotlib takes it; `none` where there is none."""
    if not colour:
        return "none"
    *channels, alpha = colour_channels(colour)
    return (*channels, alpha * (1 if opacity is None else opacity))


def plain(text: str | None) -> str:
    """A text of plotly without its tags, in the lines that it has."""
    return "\n".join(plain_lines(text or ""))


class PlotAxis:
    """One axis, of x or of y: what its values are, and how it is ruled."""

    def __init__(self, name: str, spec: Any, given: Iterable[Sequence[Any]]):
        self.name, self.spec = name, spec
        self.log = spec.type == "log"
        self.categories: list[Any] | None = None
        found = [v for values in given for v in values if v is not None]
        if spec.type == "category" or any(isinstance(v, str) for v in found):
            self.categories = list(dict.fromkeys([*(spec.categoryarray or ()), *found]))

    def at(self, values: Sequence[Any] | Any) -> np.ndarray:
        """Values as numbers on the axis."""
        values = list(values)
        if self.categories is not None:
            known = {c: i for i, c in enumerate(self.categories)}
            values = [known.get(v, v) for v in values]
        return np.array([np.nan if v is None else v for v in values], float)

    @property
    def reversed(self) -> bool:
        """Whether it runs the other way than it would by itself."""
        drawn = self.spec.range
        return self.spec.autorange == "reversed" or (drawn is not None and drawn[0] > drawn[1])

    def rule(self, axes: Axes, which: str) -> None:
        """Limits, ticks, labels and lines of a grid."""
        from matplotlib.ticker import FuncFormatter, MultipleLocator, NullLocator

        spec, one = self.spec, getattr(axes, f"{which}axis")
        if spec.range is not None:
            low, high = (10.0**v if self.log else v for v in self.at(spec.range))
            getattr(axes, f"set_{which}lim")(low, high)
        elif spec.rangemode == "tozero":
            low, high = sorted(getattr(axes, f"get_{which}lim")())
            getattr(axes, f"set_{which}lim")(min(low, 0), max(high, 0))
        elif spec.autorange == "reversed":
            one.set_inverted(True)
        title = plain(spec.title.text)
        if title:
            one.set_label_text(title, fontsize=13 * POINTS, color=INK)
        values, texts = spec.tickvals, spec.ticktext
        if values is None and self.categories is not None:
            values, texts = range(len(self.categories)), self.categories
        if values is not None:
            texts = [f"{v:g}" for v in values] if texts is None else map(str, texts)
            one.set_ticks(self.at(values), [plain(t) for t in texts])
            one.set_minor_locator(NullLocator())
        elif isinstance(spec.dtick, int | float) and not self.log:
            one.set_major_locator(MultipleLocator(spec.dtick))
        form = spec.tickformat
        if values is None and form and _FORMAT.match(form):
            whole = form.endswith("d")
            one.set_major_formatter(
                FuncFormatter(lambda v, _: format(round(v) if whole else v, form))
            )
        angle = spec.tickangle
        slanted = {"rotation": -angle, "ha": "right" if angle < 0 else "left"} if angle else {}
        if slanted and which == "x":
            slanted["rotation_mode"] = "anchor"
        hidden = spec.showticklabels is False or spec.visible is False
        size = (spec.tickfont.size or 12) * POINTS
        for label in one.get_ticklabels():
            label.set(fontsize=size, color=INK, visible=not hidden, **slanted)
        one.set_tick_params(length=0, **({f"label{_FIRST[which]}": False} if hidden else {}))
        axes.set_axisbelow(True)
        grid = spec.showgrid is not False and spec.visible is not False
        if grid and self.categories is None:
            one.grid(True, color=rgba(spec.gridcolor or "#dddddd"), linewidth=0.8)


_FIRST = {"x": "bottom", "y": "left"}


class Plane:
    """The axes of a figure in their places, and where its references lead to."""

    def __init__(self, fig: go.Figure, canvas: Figure, traces: Sequence[Any]):
        from matplotlib.transforms import Affine2D

        layout, margin = fig.layout, fig.layout.margin
        self.width, self.height = size_of(fig)
        left, right = _given(margin.l, 80), _given(margin.r, 80)
        top, bottom = _given(margin.t, 100), _given(margin.b, 80)
        self.left, self.bottom = left / self.width, bottom / self.height
        self.across = (self.width - left - right) / self.width
        self.up = (self.height - top - bottom) / self.height
        self.canvas = canvas
        area = Affine2D().scale(self.across, self.up).translate(self.left, self.bottom)
        self.paper: Transform = area + canvas.transFigure
        self.pairs: dict[tuple[str, str], Axes] = {}
        self.axis: dict[str, PlotAxis] = {}
        for trace in traces:
            for which in "xy":
                name = getattr(trace, f"{which}axis") or which
                given = [list(getattr(t, which)) for t in traces
                         if (getattr(t, f"{which}axis") or which) == name
                         and getattr(t, which) is not None]  # fmt: skip
                spec = layout[f"{which}axis{name[1:]}"]
                self.axis.setdefault(name, PlotAxis(name, spec, given))
            self._add(trace.xaxis or "x", trace.yaxis or "y")

    def _add(self, x: str, y: str) -> None:
        if (x, y) in self.pairs:
            return
        (x0, x1), (y0, y1) = (self.axis[n].spec.domain or (0, 1) for n in (x, y))
        box = (self.left + x0 * self.across, self.bottom + y0 * self.up,
               (x1 - x0) * self.across, (y1 - y0) * self.up)  # fmt: skip
        shared = {}
        for which, name in (("x", x), ("y", y)):
            leader = self.axis[name].spec.matches or name
            found = [a for pair, a in self.pairs.items()
                     if leader in (pair["xy".index(which)],
                                   self.axis[pair["xy".index(which)]].spec.matches)]  # fmt: skip
            shared |= {f"share{which}": found[0]} if found else {}
        axes = self.canvas.add_axes(box, label=f"{x} {y}", **shared)
        axes.patch.set_visible(False)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color("#cfcfcf")
        self.pairs[x, y] = axes

    def of(self, x: str, y: str) -> Axes:
        """The axes on which a shape, a text or a picture lies."""
        for pair, axes in self.pairs.items():
            if all(r in ("paper", None) or r.split()[0] in pair for r in (x, y)):
                return axes
        return next(iter(self.pairs.values()))

    def transform(self, x: str, y: str) -> Transform:
        """Where numbers lead that refer to an axis, to its domain or to the paper."""
        from matplotlib.transforms import blended_transform_factory

        axes = self.of(x, y)
        ways = [
            self.paper if ref in ("paper", None)
            else axes.transAxes if ref.endswith(" domain") else axes.transData
            for ref in (x, y)
        ]  # fmt: skip
        return blended_transform_factory(*ways)

    def value(self, ref: str, value: Any) -> float:
        """A number, a category or the exponent on a log axis, as a number to draw at."""
        axis = None if ref == "paper" or ref.endswith(" domain") else self.axis.get(ref)
        if axis is None:
            return float(value)
        found = float(axis.at([value])[0])
        return 10.0**found if axis.log else found


def size_of(fig: go.Figure) -> tuple[int, int]:
    """Width and height in pixels; what a page is wide, where the figure says nothing."""
    return fig.layout.width or 820, fig.layout.height or 450


def _given(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
