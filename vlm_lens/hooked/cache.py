"""What a run has read, by point, layer and position."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from vlm_lens.errors import (
    PointError,
    PositionError,
    VectorError,
    near_matches,
    refuse_attribute,
)
from vlm_lens.hooked import cache_files
from vlm_lens.hooked.habits import CACHE_ATTRIBUTES
from vlm_lens.hooked.picked_places import places_of
from vlm_lens.hooked.stacks import Owner, Stacks
from vlm_lens.interventions.base import ModelFacts
from vlm_lens.interventions.origin import value_read_at
from vlm_lens.layout.layout import Layout
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.points.placement import together
from vlm_lens.points.point import Point, expand_name
from vlm_lens.points.table import PointTable
from vlm_lens.serial import FrozenTensor, Savable, as_frozen, savable

if TYPE_CHECKING:
    import pandas as pd


@savable
@dataclass(frozen=True)
class CacheSlice(Savable):
    """Values of some points at one position, taken from a cache: a value to patch with.

    Attributes:
        values: Point name -> tensor `[batch, positions, (heads,) ...]`; `[places, (heads,) ...]`
            where the rows have different numbers of positions.
        source: The model that they were read on, if it is known.
    """

    values: dict[str, FrozenTensor] = field(hash=False)
    source: ModelFacts | None = None

    def value_at(self, point: Point, model: ModelFacts, *, allow_transfer: bool = False) -> Tensor:
        """The values of the same point.

        Raises:
            VectorError: The cache did not read it, or it is another model's and `allow_transfer` is
                not given.
        """
        return value_read_at(
            self.values, point, self.source, model, what="cache", allow_transfer=allow_transfer
        )

    def __repr__(self) -> str:
        return f"CacheSlice({', '.join(f'{k} {v!r}' for k, v in self.values.items())})"


class ActivationCache(Stacks, Mapping[str, Tensor]):
    """The activations that a run has read: a mapping from point names to tensors.

    `cache["blocks.3.hook_resid_post"]`, `cache["resid_post", 3]` and `cache["hook_merged"]` work.
    So do TransformerLens's `accumulated_resid`, `decompose_resid`, `stack_head_results`,
    `logit_attrs` and `apply_ln_to_stack`.

    Attributes:
        layouts: The layout of each row of the prompt.
        at: The position that was kept; `None` where all were.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        points: PointTable,
        layouts: tuple[Layout, ...],
        *,
        at: Position | None = None,
        source: Callable[[], ModelFacts] | None = None,
        owner: Owner | None = None,
    ):
        self._values = {name: values[name] for name in points if name in values}
        self._points = points
        self.layouts = layouts
        self.at = at
        self.source = source
        self.owner = owner

    def __getitem__(self, name: str | tuple) -> Tensor:
        full = self._points.full_name(name)
        if full in self._values:
            return self._values[full]
        if full in self._points:
            raise PointError(
                f"{full} was not read in this run: add it to names_filter."
                + near_matches(full, self._values)
            )
        if isinstance(name, str) and _has_layers(name, self._values):
            raise PointError(
                f"{name!r} is a kind of point with one for each block: take cache[{name!r}, 3], or "
                f"all blocks as cache.stack({name!r})."
            )
        return self._values[self._points[full].name]

    if not TYPE_CHECKING:  # a type checker would take any name for known

        def __getattr__(self, name: str) -> Any:
            refuse_attribute(type(self), name, CACHE_ATTRIBUTES)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        """Whether another holds the same activations of the same prompt."""
        if not isinstance(other, ActivationCache):
            return NotImplemented
        same = (list(self), self.layouts, self.at) == (list(other), other.layouts, other.at)
        return same and all(torch.equal(v, other._values[n]) for n, v in self._values.items())

    __hash__ = None  # type: ignore[assignment]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str | tuple) and self._points.full_name(name) in self._values

    def stack(self, kind: str) -> Tensor:
        """One kind of point over its layers, `[layers, batch, pos, ...]`.

        The layers are those that have it and were read, in order: where some blocks mix positions
        otherwise (LFM2), entry 1 of a stack of `z` is not block 1. Of a model over several devices,
        the stack lies where the first layer does.

        Args:
            kind: A short name: `"resid_post"`, `"z"`, `"vision.resid_post"`.

        Raises:
            PointError: No layer of it was read.
        """
        pattern = expand_name((kind, "*"))
        names = [n for n in self._points.match(pattern) if n in self._values]
        if not names:
            raise PointError(f"No layer of {pattern} was read in this run.")
        return torch.stack(together(self._values[n] for n in names))

    def select(self, name: str | tuple, at: Position | int) -> Tensor:
        """One point at a position of each row, `[batch, positions, ...]`.

        Raises:
            PositionError: The rows have different numbers of such positions, or the cache kept
                another position only.
        """
        point = self._points[name]
        value = self[name]
        if self.at is not None:
            raise PositionError(f"This cache kept the activations at {self.at} only.")
        return _picked(value, point, as_position(at), self.layouts)

    def slice_at(self, points: tuple[str, ...], at: Position) -> CacheSlice:
        """The values of some points at a position, as a value to patch with."""
        names = [n for n in self._points.match(list(points)) if n in self._values]
        if not names:
            raise VectorError(
                f"The cache holds none of {', '.join(points)}; it holds {', '.join(self._values)}."
            )
        if self.at is not None and self.at != at:
            raise VectorError(f"The cache kept the activations at {self.at}, not at {at}.")
        kept = {
            n: as_frozen(self._position_major(n) if self.at is not None else self._places(n, at))
            for n in names
        }
        return CacheSlice(kept, None if self.source is None else self.source())

    def _places(self, name: str, at: Position) -> Tensor:
        """The values at a position, one entry a place where rows have different numbers of them."""
        value, point = self._values[name], self._points[name]
        counts = {len(at.resolve(layout, point.space)) for layout in self.layouts}
        if len(counts) == 1:
            return _picked(value, point, at, self.layouts, position_major=True)
        rows = [_picked(value, point, at, (row,), position_major=True) for row in self.layouts]
        return torch.cat([row[0] for row in rows])

    def _position_major(self, name: str) -> Tensor:
        value = self._values[name]
        return value.transpose(1, 2) if "query" in self._points[name].axes else value

    def save(self, stem: str | Path) -> Path:
        """Writes `stem.safetensors`, each activation by its name, and `stem.json`.

        Both are of one save, wherever the process ends.

        Returns:
            The path of the JSON file.

        Raises:
            VLMLensError: The files cannot be written.
        """
        source = None if self.source is None else self.source()
        return cache_files.write(stem, self._values, self._points, self.layouts, self.at, source)

    @classmethod
    def load(cls, stem: str | Path) -> Self:
        """Reads what `save` wrote, onto the CPU; no model is needed.

        Raises:
            VLMLensError: No such file, or it holds something else.
        """
        return cls(**cache_files.read(stem))

    def to(self, device: str | torch.device) -> ActivationCache:
        """The same cache on another device."""
        moved = {n: v.to(device) for n, v in self._values.items()}
        return ActivationCache(
            moved, self._points, self.layouts, at=self.at, source=self.source, owner=self.owner
        )

    def to_dataframe(self) -> pd.DataFrame:
        """What was read: point, shape, dtype, device, bytes."""
        import pandas as pd

        return pd.DataFrame(
            {"point": n, "shape": str(list(v.shape)), "dtype": str(v.dtype).removeprefix("torch."),
             "device": str(v.device), "bytes": v.nbytes}
            for n, v in self._values.items()
        )  # fmt: skip

    def __repr__(self) -> str:
        kinds = self._kinds()
        lines = [self._summary()]
        width = max((len(kind) for kind in kinds), default=0)
        for kind, values in kinds.items():
            size = _bytes(sum(v.nbytes for v in values))
            lines.append(f"  {kind:<{width}}  {len(values):>3} x {_shape(values[0])}  {size}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = ("point", "activations", "shape", "dtype", "size")
        rows = [
            (f"<code>{escape(kind)}</code>", str(len(values)), _shape(values[0]),
             str(values[0].dtype).removeprefix("torch."), _bytes(sum(v.nbytes for v in values)))
            for kind, values in self._kinds().items()
        ]  # fmt: skip
        titles = "".join(f"<th>{title}</th>" for title in head)
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
        return (
            f"<div>{escape(self._summary())}</div><table style='table-layout:auto'>"
            f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"
        )

    def _summary(self) -> str:
        total = sum(v.nbytes for v in self._values.values())
        return f"ActivationCache: {len(self)} activations, {_bytes(total)}"

    def _kinds(self) -> dict[str, list[Tensor]]:
        """What was read, the blocks of one kind together."""
        kinds: dict[str, list[Tensor]] = {}
        for name, value in self._values.items():
            kind = name.replace(f"blocks.{self._points[name].layer}.", "blocks.*.")
            kinds.setdefault(kind, []).append(value)
        return kinds


def _shape(value: Tensor) -> str:
    return f"[{'x'.join(map(str, value.shape))}]"


def _has_layers(kind: str, names: Iterable[str]) -> bool:
    pattern = expand_name((kind, "*"))
    return any(re.sub(r"\.\d+\.", ".*.", name) == pattern for name in names)


def _picked(
    value: Tensor,
    point: Point,
    at: Position,
    layouts: tuple[Layout, ...],
    *,
    position_major: bool = False,
) -> Tensor:
    places = places_of(at, point.space, layouts)
    return places.pick(value, pattern="query" in point.axes, position_major=position_major)


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"
