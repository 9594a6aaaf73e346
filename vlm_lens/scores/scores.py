"""Scores: an array with named axes that knows the coordinates of its prompt.

```
values  xarray.DataArray, axes among
        layer  head  query  position  kind  token  feature  component   (numbers, names)
                      |        |
                      +--------+--- positions of `space`: the language model's sequence, or the
                                    tower's or projector's, with `row` beside each position
layout  what stands at a position: token, kind, patch, pixels
```
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import xarray as xr
from PIL import Image

from vlm_lens.layout.layout import Layout
from vlm_lens.layout.positions import All, Position, as_position
from vlm_lens.scores import files
from vlm_lens.scores.labelled import Labelled, labels_of
from vlm_lens.scores.places import Place, places
from vlm_lens.scores.refusal import ScoresError
from vlm_lens.scores.tables import as_table, ranked
from vlm_lens.scores.text import abridged, as_html, as_text, told
from vlm_lens.scores.views import view_of

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from vlm_lens.figures.picture_view import PictureView
    from vlm_lens.prompts.prompt import Prompt

POSITIONAL = ("position", "query")
AXES = (
    "pair", "row", "layer", "head", "query", "position", "kind", "receiver", "feature", "token",
    "component", "scale", "edges", "variant",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Scores(Labelled):
    """Numbers on coordinates: heads, blocks, positions, patches, tokens, features.

    Attributes:
        values: The numbers, an `xarray.DataArray`; `position` and `query` hold positions of
            `space`, and the coordinate `row` beside `position` the activation's row where a
            picture has rows of its own (tower, projector).
        name: What the numbers are: `"attention"`, `"share of the logit"`.
        layout: The prompt's coordinates; `None` where the scores have none.
        pictures: The prompt's pictures.
        space: Whose positions they are: `"text"`, `"vision"` or `"projector"`.
        marked: Name -> positions that figures mark and `without` leaves out (`"sinks"`).
        about: How they were made: model, method, what is summed.
    """

    values: xr.DataArray
    name: str = "score"
    layout: Layout | None = None
    pictures: tuple[Image.Image, ...] = ()
    space: str = "text"
    marked: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.values, xr.DataArray):
            raise ScoresError(
                "Scores hold an xarray.DataArray with named axes, not "
                f"{type(self.values).__name__}: scores(array, axes) of vlm_lens.scores.scores "
                "makes them."
            )
        unknown = [d for d in self.values.dims if d not in AXES]
        if unknown:
            raise ScoresError(f"Scores have axes among {', '.join(AXES)}; not {unknown}.")
        bare = [d for d in self.values.dims if d not in self.values.coords]
        if bare:
            raise ScoresError(f"Each axis of scores has coordinates; {bare} have none.")
        if self.layout is None and any(d in self.values.dims for d in POSITIONAL):
            raise ScoresError("Scores by position need the layout of their prompt.")

    @classmethod
    def of(
        cls,
        prompt: Prompt,
        values: Any,
        at: Position | int | Sequence[int] = All(),  # noqa: B008  a frozen value
        *,
        axes: Mapping[str, Sequence[Hashable]] | None = None,
        space: str = "text",
        name: str = "score",
        row: int = 0,
    ) -> Scores:
        """Numbers of your own, one for each of some places of a prompt.

        Args:
            prompt: The prompt.
            values: The numbers, `[..., places]`: an array, a tensor or a list.
            at: Which places, in the order of the last axis; all by default.
            axes: The axes before the last, each with its coordinates: `{"layer": range(8)}`.
            space: Whose positions these are: `"text"`, `"vision"` or `"projector"`.
            name: What the numbers are.
            row: Which row of the prompt.

        Raises:
            ScoresError: The numbers are not as many as the places, or the axes do not fit.
            PositionError: No such place.
        """
        if hasattr(values, "detach"):
            values = values.detach().float().cpu().numpy()
        values, axes = np.asarray(values), dict(axes or {})
        pairs = as_position(at).resolve(prompt.layouts[row], space)
        wanted = (*map(len, axes.values()), len(pairs))
        if values.shape != wanted:
            raise ScoresError(
                f"Numbers of shape {list(values.shape)} do not fit {[*axes, 'position']} of sizes "
                f"{list(wanted)} ({at} in {space!r}): give one for each place in the last axis, "
                "and name the axes before it with axes={'layer': range(8)}."
            )
        rows = [r for r, _ in pairs] if space != "text" else None
        return scores(
            values, {**axes, "position": [p for _, p in pairs]}, rows, name=name, space=space,
            layout=prompt.layouts[row], pictures=prompt.images[row] if prompt.images else (),
        )  # fmt: skip

    # ------------------------------------------------------------------ by kind of position

    def by_kind(self, how: str = "sum") -> Self:
        """The `position` axis by kind of position: each picture, text, special tokens.

        Args:
            how: `"sum"` (a share of attention), `"mean"` (of each position) or `"max"`.

        Raises:
            ScoresError: No `position` axis, or another `how`.
        """
        self.needs("position")
        if how not in ("sum", "mean", "max"):
            raise ScoresError(f"by_kind gives sum, mean or max, not {how!r}.")
        kinds = [place.kind for place in self.places()]
        order = sorted(set(kinds), key=lambda k: (not k.medium, k))
        parts = [
            getattr(self.values.isel(position=[i for i, k in enumerate(kinds) if k == kind]), how)(
                "position"
            )
            for kind in order
        ]
        return self._with(xr.concat(parts, xr.DataArray(order, dims="kind", name="kind")))

    def of_kind(self, *kinds: str) -> Self:
        """The scores at positions of some kinds only: `"text"`, `"special"`, `"image 0"`.

        `"image"` means all pictures, `"video"` all videos.

        Raises:
            ScoresError: No `position` axis, or no position of these kinds.
        """
        self.needs("position")
        here = [place.kind for place in self.places()]
        wanted = {k for k in here if k in kinds or (k.medium or k) in kinds}
        if not wanted:
            asked, known = (", ".join(map(repr, dict.fromkeys(k))) for k in (kinds, here))
            raise ScoresError(f"No position here is of kind {asked}; there are {known}.")
        keep = [i for i, k in enumerate(here) if k in wanted]
        return self._with(self.values.isel(position=keep))

    def without(self, name: str = "sinks") -> Self:
        """The scores at all other positions than those marked so.

        Raises:
            ScoresError: No `position` axis, or nothing is marked so.
        """
        self.needs("position")
        if name not in self.marked:
            raise ScoresError(
                f"Nothing is marked {name!r} in these scores; marked are {list(self.marked)}."
            )
        lost = set(self.marked[name])
        keep = [i for i, p in enumerate(self.values["position"].to_numpy()) if int(p) not in lost]
        marked = {k: v for k, v in self.marked.items() if k != name}
        return replace(self._with(self.values.isel(position=keep)), marked=marked)

    def without_sinks(self) -> Self:
        """The scores without attention sinks; see `marked`."""
        return self.without("sinks")

    # ------------------------------------------------------------------ places

    def places(self) -> list[Place]:
        """What stands at each entry of the `position` axis.

        Raises:
            ScoresError: There is no such axis.
        """
        self.needs("position")
        return self._places_of("position")

    def _known_places(self) -> list[Place] | None:
        return self.places() if "position" in self.axes else None

    def _places_of(self, axis: str) -> list[Place]:
        positions = [int(p) for p in np.atleast_1d(self.values[axis].to_numpy())]
        if axis == "position" and "row" in self.values.coords and self.values["row"].dims == (
            "position",
        ):  # fmt: skip
            rows = [int(r) for r in self.values["row"].to_numpy()]
        else:
            rows = [self.layout.row] * len(positions)
        return places(self.layout, self.space, list(zip(rows, positions, strict=True)))

    def top(self, k: int = 10, *, largest: str = "value") -> pd.DataFrame:
        """The largest scores, one row each, with what stands there.

        Args:
            k: How many.
            largest: `"value"`, or `"magnitude"` for scores with a sign.

        Returns:
            A column for each axis, `token`, `patch` and `pixels` where there are positions, and
            the score under its name.

        Raises:
            ScoresError: Another `largest`, or `k` below 1.
        """
        return ranked(self.values, self._known_places(), self.space, self.name, k, largest)

    def bottom(self, k: int = 10) -> pd.DataFrame:
        """The smallest scores, one row each, as `top` gives the largest."""
        found = ranked(-self.values, self._known_places(), self.space, self.name, k, "value")
        return found.assign(**{self.name: -found[self.name]})

    def to_dataframe(self) -> pd.DataFrame:
        """All scores, one row each: a column for each axis, and the score under its name."""
        return as_table(self.values, self._known_places(), self.name)

    def to_xarray(self) -> xr.DataArray:
        """The numbers as an `xarray.DataArray` of its own, with `about` as attributes."""
        plain = {k: v for k, v in self.about.items() if isinstance(v, str | int | float)}
        return self.values.rename(self.name).assign_attrs(plain).copy()

    # ------------------------------------------------------------------ pictures

    def plot(self) -> go.Figure | PictureView:
        """The figure that fits the axes.

        Blocks by heads, blocks by positions and other pairs are heat maps, one axis is a line;
        positions alone are the tokens as coloured text, with the pictures. Further axes get
        sliders.

        Raises:
            ScoresError: A single number.
        """
        wide = [a for a, n in zip(self.axes, self.shape, strict=True) if n > 1]
        if not wide:
            raise ScoresError(f"This is a single number, {float(self.values.squeeze()):.4g}.")
        if wide == ["position"]:
            return self.over_tokens()
        from vlm_lens.figures.score_map import score_map

        return score_map(
            self.values.squeeze(drop=False).transpose(*wide).to_numpy()
            if len(wide) != len(self.axes)
            else self.values.to_numpy(),
            {axis: self._labels(axis) for axis in wide},
            name=self.name,
            subtitle=self._subtitle(),
        )

    def over_picture(self, **where: Any) -> PictureView:
        """The scores laid over the pictures, the tokens below, with sliders for other axes.

        Args:
            **where: What is shown, by coordinate, as in `sel`: `over_picture(layer=4, head=2)`.

        Raises:
            ScoresError: No position of these scores is a patch of a picture.
        """
        return (self.sel(**where) if where else self)._view(pictures=True)

    def over_tokens(self, **where: Any) -> PictureView:
        """The prompt's tokens as coloured text, with pictures where scores lie on them."""
        chosen = self.sel(**where) if where else self
        return chosen._view(pictures=any(p.patch for p in chosen.places()))

    def _view(self, *, pictures: bool) -> PictureView:
        self.needs("position")
        others = [a for a in self.axes if a != "position"]
        labels = {axis: self._labels(axis) for axis in others}
        return view_of(
            self.values.transpose(*others, "position").to_numpy(),
            {axis: names for axis, names in labels.items() if len(names) > 1},
            self.places(),
            self.layout,
            self.space,
            self.pictures if pictures else None,
            marked={p for positions in self.marked.values() for p in positions},
            name=self.name,
            subtitle=self._subtitle(),
        )

    def _labels(self, axis: str) -> list[str]:
        if axis in POSITIONAL:
            return [f"{p.position} {p.label}" for p in self._places_of(axis)]
        return [str(v) for v in self.values[axis].to_numpy().tolist()]

    def _subtitle(self) -> str:
        return ", ".join(
            f"{axis} {self.values[axis].item()}"
            for axis in self.values.coords
            if self.values[axis].ndim == 0
        )

    # ------------------------------------------------------------------ files, print

    def save(self, folder: str | Path) -> Path:
        """Writes the scores into a folder: safetensors, JSON and the pictures as PNG.

        Returns:
            The folder.
        """
        return files.save(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            VLMLensError: No scores are there.
        """
        return cls(**files.load(folder))

    def __repr__(self) -> str:
        return as_text(self._head(), self._lines(), self._largest())

    def _repr_html_(self) -> str:
        return as_html(self._head(), self._lines(), self._largest())

    def _head(self) -> str:
        sizes = ", ".join(f"{a} {n}" for a, n in zip(self.axes, self.shape, strict=True))
        return f"Scores({self.name}: {sizes or f'{float(self.values):.4g}'})"

    def _lines(self) -> list[str]:
        about = "; ".join(f"{k} {told(v)}" for k, v in self.about.items())
        marked = "; ".join(f"{k} at {abridged(list(v))}" for k, v in self.marked.items() if v)
        return [line for line in (about, marked) if line]

    def _largest(self) -> pd.DataFrame | None:
        """The ten largest, of ranks the ten first; `None` for a single number."""
        if not self.shape or not self.values.size:
            return None
        if self.name.split(" ")[0] == "rank":  # 0 is the first of all
            return self.bottom(10)
        signed = bool((self.values < 0).any())
        return self.top(10, largest="magnitude" if signed else "value")


def scores(
    values: np.ndarray, axes: Mapping[str, Sequence[Hashable]], rows: Sequence[int] | None = None,
    **about: Any,
) -> Scores:  # fmt: skip
    """Scores from an array and its axes.

    Args:
        values: The numbers.
        axes: Axis -> its coordinates, in the array's order.
        rows: The activation's row of each position, for tower and projector.
        **about: The other fields of `Scores`.
    """
    coords = {k: (k, labels_of(v)) for k, v in axes.items()}
    array = xr.DataArray(values, dims=list(axes), coords=coords)
    if rows is not None:
        array = array.assign_coords(row=("position", list(rows)))
    return Scores(array, **about)
