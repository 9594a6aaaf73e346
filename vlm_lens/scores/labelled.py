"""What scores are beside what they are scores of: an array with named axes, a frozen value."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import xarray as xr

from vlm_lens.errors import near_matches, refuse_attribute
from vlm_lens.keywords import Answering
from vlm_lens.scores.refusal import ScoresError
from vlm_lens.scores.text import abridged

_HABITS = {
    **{
        name: "scores.top(1) is the largest, with where it stands"
        for name in ("argmax", "idxmax", "nlargest")
    },
    **{
        name: "scores.bottom(1) is the smallest, with where it stands"
        for name in ("argmin", "idxmin")
    },
    **{
        name: "scores.values is an xarray.DataArray, scores.values.to_numpy() an array"
        for name in (
            "numpy",
            "to_numpy",
            "cpu",
            "data",
            "tensor",
            "item",
            "tolist",
            "std",
            "var",
            "T",
            "isel",
            "where",
        )
    },
    **{name: "choose by coordinate: scores.sel(layer=4, head=2)" for name in ("iloc", "loc")},
    **{
        name: "scores.axes are its axes, scores.values[axis] the coordinates of one"
        for name in ("dims", "coords", "columns", "layers", "positions")
    },
    **{name: "scores.plot() gives the figure" for name in ("show", "heatmap", "imshow", "figure")},
    "abs": "it is abs(scores)",
    "sort_values": "scores.top(k) ranks; scores.to_dataframe() is a table",
    "head": "scores.sel(head=2) chooses a head; scores.top(5) are the largest",
}  # what users of numpy, pandas, xarray and torch type


class Labelled(Answering):
    """Choice by coordinate, reductions over axes, and arithmetic; of a dataclass with `values`."""

    values: xr.DataArray

    if not TYPE_CHECKING:  # a type checker would take any name for known

        def __getattr__(self, name: str) -> Any:
            refuse_attribute(type(self), name, _HABITS)

    def __float__(self) -> float:
        if self.values.size != 1:
            raise ScoresError(
                f"These are {self.values.size} numbers by {list(self.axes)}: choose one with "
                "sel(), or reduce axes with sum() or mean()."
            )
        return float(self.values.squeeze())

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the axes, in order."""
        return tuple(map(str, self.values.dims))

    @property
    def shape(self) -> tuple[int, ...]:
        """How long each axis is."""
        return self.values.shape

    def __len__(self) -> int:
        return self.values.size

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values.to_numpy(), dtype=dtype, copy=copy)

    def __getitem__(self, index: Any) -> Self:
        raise ScoresError(
            f"Scores are chosen by coordinate, scores.sel({self.axes[0] if self.axes else 'layer'}"
            f"=...), not [{index!r:.40}]; scores.values[...] counts as xarray does."
        )

    def sel(self, **where: Any) -> Self:
        """Some of the scores, by coordinate: `scores.sel(layer=4, head=[0, 2])`.

        A single value drops its axis.

        Raises:
            ScoresError: No such axis, or a coordinate that is not there.
        """
        for axis, wanted in where.items():
            self.needs(axis)
            known = self.values[axis].to_numpy().tolist()
            listed = wanted if isinstance(wanted, Sequence | np.ndarray) and not isinstance(
                wanted, str
            ) else [wanted]  # fmt: skip
            lost = [w for w in listed if w not in known]
            if lost:
                raise ScoresError(
                    f"{axis} {lost[0]!r} is not among these scores: they have {abridged(known)}."
                )
        return self._with(self.values.sel({k: _listed(v) for k, v in where.items()}))

    def sum(self, *axes: str) -> Self:
        """The sum over axes."""
        return self._reduced("sum", axes)

    def mean(self, *axes: str) -> Self:
        """The mean over axes."""
        return self._reduced("mean", axes)

    def max(self, *axes: str) -> Self:
        """The largest over axes."""
        return self._reduced("max", axes)

    def min(self, *axes: str) -> Self:
        """The smallest over axes."""
        return self._reduced("min", axes)

    def _reduced(self, how: str, axes: Sequence[str]) -> Self:
        if not axes:
            raise ScoresError(f"Say over which axes: {how}('head'); there are {list(self.axes)}.")
        for axis in axes:
            self.needs(axis)
        return self._with(getattr(self.values, how)(list(axes), keep_attrs=True))

    def __add__(self, other: Self | float) -> Self:
        return self._combined(other, operator.add)

    def __sub__(self, other: Self | float) -> Self:
        return self._combined(other, operator.sub)

    def __mul__(self, other: Self | float) -> Self:
        return self._combined(other, operator.mul)

    def __truediv__(self, other: Self | float) -> Self:
        return self._combined(other, operator.truediv)

    def __radd__(self, other: float) -> Self:
        return self._combined(other, lambda mine, given: given + mine)

    def __rsub__(self, other: float) -> Self:
        return self._combined(other, lambda mine, given: given - mine)

    def __rmul__(self, other: float) -> Self:
        return self._combined(other, lambda mine, given: given * mine)

    def __neg__(self) -> Self:
        return self._with(-self.values)

    def __abs__(self) -> Self:
        return self._with(abs(self.values))

    def _combined(self, other: Self | float, how: Callable) -> Self:
        if not isinstance(other, Labelled):
            if not isinstance(other, Real):
                raise ScoresError(
                    f"Scores are combined with scores or a number, not {other!r:.60}."
                )
            return self._with(how(self.values, other))
        try:
            left, right = xr.align(self.values, other.values, join="exact")
        except ValueError as error:
            raise ScoresError(
                f"Scores of other coordinates cannot be combined: {error}. Choose the same with "
                "sel(), or sum over what differs."
            ) from None
        return self._with(how(left, right))

    def needs(self, axis: str) -> None:
        """Refuses scores without an axis.

        Raises:
            ScoresError: They have none of this name.
        """
        if axis not in self.axes:
            raise ScoresError(
                f"These scores have no axis {axis!r}; they have {list(self.axes)}."
                + near_matches(axis, self.axes)
            )

    def _with(self, values: xr.DataArray) -> Self:
        return replace(self, values=values)


def labels_of(values: Sequence[Any]) -> np.ndarray:
    """Coordinates as an array in which names and numbers stay what they are: embed, 0, 1, ..."""
    made = np.asarray(list(values))
    if made.dtype.kind in "US" and not all(isinstance(v, str) for v in values):
        made = np.empty(len(values), dtype=object)
        made[:] = list(values)
    return made


def _listed(wanted: Any) -> Any:
    if isinstance(wanted, np.ndarray | range | tuple):
        return list(wanted)
    return wanted
