"""What a run has read on disk: safetensors by point name, JSON for the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm_lens.hooked.later import FactsLater
from vlm_lens.interventions.base import ModelFacts
from vlm_lens.layout.layout import Layout
from vlm_lens.layout.positions import Position
from vlm_lens.points.point import Point
from vlm_lens.points.sites import AttentionSite, OutputSite
from vlm_lens.points.table import PointTable
from vlm_lens.serial import pack, savable, unpacked
from vlm_lens.storage.files import (
    FileError,
    as_path,
    current,
    read_json,
    read_tensors,
    write_tensors,
    written_together,
)

_NOWHERE = OutputSite("")  # there is no model beside a file
_ON_DEMAND = AttentionSite("", "pattern")


@savable
@dataclass(frozen=True)
class _Named:
    """What is kept of a point."""

    name: str
    axes: tuple[str, ...]
    sizes: tuple[int | None, ...]
    doc: str
    space: str
    read_only: str
    pictures_only: bool
    on_demand: bool
    keys: str = ""


@savable
@dataclass(frozen=True)
class _Described:
    """All of a cache but its tensors.

    Attributes:
        points: The points of the model, those that were not read too.
        missing: What the family lacks, with the reason.
        aliases: TransformerLens's names of points.
        layouts: The layout of each row.
        at: The position that was kept; `None` where all were.
        source: The model that it was read on, if it is known.
    """

    points: tuple[_Named, ...]
    missing: dict[str, str] = field(hash=False)
    aliases: dict[str, str] = field(hash=False)
    layouts: tuple[Layout, ...]
    at: Position | None
    source: ModelFacts | None

    @property
    def table(self) -> PointTable:
        """The points, by which names, short forms and globs are found."""
        points = [
            Point(p.name, p.axes, p.sizes, p.doc, _ON_DEMAND if p.on_demand else _NOWHERE,
                  p.space, p.read_only, p.pictures_only, p.keys)
            for p in self.points
        ]  # fmt: skip
        return PointTable(points, self.missing, aliases=self.aliases)


def write(
    stem: str | Path,
    values: Mapping[str, Tensor],
    points: PointTable,
    layouts: tuple[Layout, ...],
    at: Position | None,
    source: ModelFacts | None,
) -> Path:
    """Writes `stem.safetensors` and `stem.json`, both or neither; see `ActivationCache.save`."""
    named = tuple(
        _Named(
            p.name,
            p.axes,
            p.sizes,
            p.doc,
            p.space,
            p.read_only,
            p.pictures_only,
            p.on_demand,
            p.keys,
        )  # fmt: skip
        for p in points.values()
    )
    described = _Described(named, points.missing, points.aliases, layouts, at, source)
    path = as_path(stem)
    with written_together(path.parent, path.name) as to:
        write_tensors(to / f"{path.name}.safetensors", _apart(values))
        text = json.dumps({"vlm_lens": 1, "cache": pack(described, {})}, ensure_ascii=False)
        (to / f"{path.name}.json").write_text(text, encoding="utf-8")
    return path.with_name(f"{path.name}.json")


def read(stem: str | Path) -> dict[str, Any]:
    """The arguments of an `ActivationCache`; see `ActivationCache.load`."""
    path = as_path(stem)
    path = path.with_name(path.name.removesuffix(".json"))
    target, side = (path.with_name(path.name + end) for end in (".json", ".safetensors"))
    data = read_json(current(target, path.name))
    if not isinstance(data, dict) or "cache" not in data:
        raise FileError(f"{target} holds no activations: they are written by cache.save(stem).")
    described = unpacked(data["cache"], {}, target)
    values = read_tensors(current(side, path.name))[0]
    if not isinstance(described, _Described) or set(values) - {p.name for p in described.points}:
        raise FileError(f"{target} is damaged or of another version: it names other points.")
    source = described.source
    return {
        "values": values,
        "points": described.table,
        "layouts": described.layouts,
        "at": described.at,
        "source": None if source is None else FactsLater(source),
    }


def _apart(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU that share no memory, as the format asks for."""
    seen: set[int] = set()
    apart = {}
    for name, value in values.items():
        value = value.detach().cpu()
        storage = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if storage in seen else value
        seen.add(storage)
    return apart
