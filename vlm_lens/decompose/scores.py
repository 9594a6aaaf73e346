"""Scores of the parts of a residual stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from vlm_lens.scores.refusal import ScoresError
from vlm_lens.scores.scores import Scores
from vlm_lens.stream.parts import HEAD, Part

_BESIDE = ("part", "layer", "head")


@dataclass(frozen=True, eq=False, repr=False)
class Decomposition(Scores):
    """Scores with an axis `component`, whose sum is what was taken apart.

    Beside each component stand its `part` (`"input"`, `"head"`, `"mlp"`, ...), its `layer` and its
    `head`, -1 where it has none.
    """

    def heads(self) -> Scores:
        """The heads alone, by `layer` and `head`; blocks without heads hold NaN.

        Raises:
            ScoresError: There are no heads among the components.
        """
        self.needs("component")
        chosen = self.values.isel(component=np.flatnonzero(self.values["part"].to_numpy() == HEAD))
        if not chosen.sizes["component"]:
            raise ScoresError("No head is among these components.")
        others = [d for d in chosen.dims if d != "component"]
        layers, heads = (chosen[name].to_numpy() for name in ("layer", "head"))
        flat = chosen.transpose("component", *others).drop_vars(["component", *_BESIDE])
        grid = np.full((layers.max() + 1, heads.max() + 1, *flat.shape[1:]), np.nan)
        grid[layers, heads] = flat.to_numpy()
        coords = {"layer": range(len(grid)), "head": range(grid.shape[1]), **flat.coords}
        values = xr.DataArray(grid, dims=("layer", "head", *others), coords=coords)
        return Scores(
            values, self.name, self.layout, self.pictures, self.space, self.marked, self.about
        )

    def by_part(self) -> Self:
        """The sum over each kind of part: input, heads, attention biases, MLPs."""
        return self._grouped("part")

    def by_layer(self) -> Self:
        """The sum over each block; what is in none is `component` -1."""
        return self._grouped("layer")

    def _grouped(self, by: str) -> Self:
        self.needs("component")
        keys = self.values[by].to_numpy()
        order = list(dict.fromkeys(keys.tolist()))
        parts = [self.values.isel(component=np.flatnonzero(keys == k)) for k in order]
        sums = [part.sum("component", keep_attrs=True) for part in parts]
        axis = xr.DataArray(order, dims="component", name="component")
        return self._with(xr.concat(sums, axis).transpose(*self.values.dims))


@dataclass
class Components:
    """Shares of components as they come, block by block.

    Attributes:
        shares: Tensors with the components along the last axis (along the last but one where they
            are vectors).
        names: What each component is called.
        table: Kind of part, block and head of each.
    """

    shares: list[Tensor] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    table: list[tuple[str, int, int]] = field(default_factory=list)

    def add(self, part: Part, shares: Tensor) -> None:
        """The shares of a part of the stream."""
        self.shares.append(shares)
        self.names += part.names
        layer = -1 if part.layer is None else part.layer
        heads = range(len(part.values)) if part.kind == HEAD else [-1]
        self.table += [(part.kind, layer, head) for head in heads]

    def add_constant(self, name: str, share: Tensor) -> None:
        """The share of a bias that is no part of the stream."""
        self.shares.append(share)
        self.names.append(name)
        self.table.append(("constant", -1, -1))

    def values(self) -> Tensor:
        """All shares, components along the last axis."""
        return torch.cat(self.shares, -1)

    def beside(self, found: Scores) -> Decomposition:
        """Scores by component, with what stands beside each."""
        columns = zip(*self.table, strict=True)
        coords = {k: ("component", list(c)) for k, c in zip(_BESIDE, columns, strict=True)}
        return Decomposition(
            found.values.assign_coords(coords), found.name, found.layout, found.pictures,
            about=found.about,
        )  # fmt: skip
