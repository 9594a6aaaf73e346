"""Task vectors: what a position holds at each layer, read from prompts and used in others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.errors import VectorError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.interventions.base import ModelFacts
from vlm_lens.interventions.origin import check_same_model
from vlm_lens.keywords import Answering
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.points.point import Point, expand_name
from vlm_lens.reading.many import as_list, read_each, text_of
from vlm_lens.serial import FrozenTensor, Savable, pack, savable, unpacked
from vlm_lens.storage.files import FileError, as_path, read_tensors, write_tensors

_MAGIC = "vlm_lens.TaskVector/1"


class LayerVectors(Answering):
    """What vectors of any making share: one value a layer, checked against model and point."""

    kind: str
    values: Tensor

    def origins(self) -> list[ModelFacts]:
        """The models that it was read on."""
        raise NotImplementedError

    def value_at(self, point: Point, model: ModelFacts, *, allow_transfer: bool = False) -> Tensor:
        """The vector for a point, checked.

        Raises:
            VectorError: Another kind of point, a layer it does not have, another width, or
                another model without `allow_transfer=True`.
        """
        if point.kind != self.kind:
            raise VectorError(
                f"This vector was read at {self.kind}, not at {point.kind} ({point.name}): use a "
                f"point like {expand_name((self.kind, 0))}, or give one layer as a tensor, "
                "vector.layer(i)."
            )
        width = point.sizes[-1]
        if self.values.shape[-1] != width:
            raise VectorError(
                f"This vector has width {self.values.shape[-1]} (read on "
                f"{self.origins()[0].name}); {point.name} of {model.name} has width {width}."
            )
        layer = point.layer or 0
        if layer >= len(self.values):
            raise VectorError(
                f"This vector has {len(self.values)} layers; there is none for {point.name}."
            )
        if not allow_transfer:
            for origin in self.origins():
                check_same_model(origin, model)
        return self.values[layer]

    def layer(self, layer: int) -> Float[Tensor, " d"]:
        """The vector of one block, 0-based, as a plain tensor, to be used at any layer."""
        if not -len(self.values) <= layer < len(self.values):
            raise VectorError(f"This vector has layers 0..{len(self.values) - 1}, not {layer}.")
        return self.values[layer]

    def norm(self) -> Float[Tensor, " layers"]:
        """The Euclidean norm at each layer."""
        return self.values.float().flatten(1).norm(dim=-1)

    def cosine(self, other: LayerVectors) -> Float[Tensor, " layers"]:
        """The cosine with another vector at each layer, between -1 and 1.

        Raises:
            VectorError: Another number of layers or another width.
        """
        if self.values.shape != other.values.shape:
            raise VectorError(
                f"Vectors of shapes {list(self.values.shape)} and {list(other.values.shape)} "
                "cannot be compared."
            )
        mine, theirs = self.values.float().flatten(1), other.values.float().flatten(1)
        return torch.nn.functional.cosine_similarity(mine, theirs, dim=-1)


@savable
@dataclass(frozen=True)
class TaskVector(LayerVectors):
    """The activation at one place of a prompt, for every layer, averaged over prompts.

    Hendel et al. 2023; across modalities Luo et al. 2025.

    Attributes:
        data: `[layers, d]` (with heads `[layers, heads, d_head]`); layer `i` is what point `kind`
            gives at the 0-based block `i`.
        kind: Which point: `resid_post` is the residual stream leaving each block.
        source: The model that it was read on.
        at: Where in the prompts.
        prompts: The texts of the prompts.
        seed: The seed by which they were drawn, if any.
        note: How it was made, if by arithmetic.
    """

    data: FrozenTensor
    kind: str
    source: ModelFacts
    at: Position | None = None
    prompts: tuple[str, ...] = field(default=(), repr=False)
    seed: int | None = None
    note: str = ""

    @classmethod
    def read(
        cls,
        vlm: HookedModel,
        prompts: Sequence[Any] | Any,
        *,
        at: Position | int,
        points: str = "blocks.*.hook_resid_post",
        batch_size: int = 16,
        seed: int | None = None,
        interventions: Any = (),
        on: Any = None,
    ) -> Self:
        """Reads a vector at every layer and averages it over prompts.

        Args:
            vlm: A HookedVLM.
            prompts: Texts, RawPrompts or Prompts; one or many.
            at: One position, the same for every prompt: `Find(":", -3)`, `Last()`.
            points: Which point of each block.
            batch_size: How many prompts run together at the most.
            seed: Noted in the vector, not used.
            interventions: What to change while reading.
            on: Where prompts are read; see `HookedVLM.sweep`.

        Raises:
            VectorError: No prompts, or `at` means several positions.
        """
        table = vlm.architecture.points
        names = table.match(points)
        layers = [table[n].layer for n in names]
        kinds = {table[n].kind for n in names}
        if len(kinds) == 1 and layers != [None] and layers != list(range(len(layers))):
            raise VectorError(
                f"{points!r} selects layers {layers}; a vector holds every layer from 0 on, so "
                "that each is used at its own: read "
                "'blocks.*...' and take one with vector.layer(i)."
            )
        stacked = read_each(
            vlm, prompts, at=at, points=points, batch_size=batch_size,
            interventions=interventions, on=on,
        )  # fmt: skip
        return cls(
            FrozenTensor(stacked.double().mean(0).to(stacked.dtype)),
            kind=table[names[0]].kind,
            source=vlm.facts,
            at=as_position(at),
            prompts=tuple(map(text_of, as_list(prompts))),
            seed=seed,
        )

    @cached_property
    def values(self) -> Tensor:
        """`[layers, d]`."""
        return self.data.data

    def origins(self) -> list[ModelFacts]:
        """The model that it was read on."""
        return [self.source]

    def _made(self, values: Tensor, note: str) -> TaskVector:
        return replace(self, data=FrozenTensor(values), note=note)

    def _arithmetic(self, other: TaskVector, sign: int, symbol: str) -> TaskVector:
        if not isinstance(other, TaskVector):
            return NotImplemented
        if self.values.shape != other.values.shape or self.kind != other.kind:
            raise VectorError(
                f"Vectors of {self.kind} {list(self.values.shape)} and {other.kind} "
                f"{list(other.values.shape)} cannot be combined."
            )
        check_same_model(self.source, other.source)
        note = f"({self.note or 'vector'} {symbol} {other.note or 'vector'})"
        made = self._made(self.values + sign * other.values, note)
        return replace(made, prompts=(*self.prompts, *other.prompts), seed=None)

    def __add__(self, other: TaskVector) -> TaskVector:
        return self._arithmetic(other, 1, "+")

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self._arithmetic(other, -1, "-")

    def __mul__(self, factor: float) -> TaskVector:
        return self._made(self.values * factor, f"{factor} * {self.note or 'vector'}")

    __rmul__ = __mul__

    def __truediv__(self, factor: float) -> TaskVector:
        return self * (1 / factor)

    def __neg__(self) -> TaskVector:
        return self * -1.0

    @staticmethod
    def mean(vectors: Iterable[TaskVector]) -> TaskVector:
        """The mean of several vectors of one model."""
        vectors = list(vectors)
        if not vectors:
            raise VectorError("A mean needs at least one vector.")
        total = vectors[0]
        for vector in vectors[1:]:
            total = total + vector
        return replace(total / len(vectors), note=f"mean of {len(vectors)} vectors")

    def save(self, path: str | Path) -> Path:
        """Writes one safetensors file, with where the vector comes from in its header.

        Raises:
            VLMLensError: It cannot be written; a file that was there before still is.
        """
        tensors: dict[str, Tensor] = {}
        about = pack(self, tensors)
        return write_tensors(_file(path), tensors, {"format": _MAGIC, "vector": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            VectorError: No such file, or not a task vector.
        """
        path = as_path(path, VectorError)
        path = path if path.exists() else _file(path)
        if not path.exists():
            raise VectorError(f"There is no file {path}.")
        try:
            tensors, about = read_tensors(path)
        except FileError as error:
            raise VectorError(str(error)) from None
        if about.get("format") != _MAGIC:
            raise VectorError(f"{path} is a safetensors file, but not a task vector.")
        try:
            return unpacked(json.loads(about["vector"]), tensors, path)
        except (KeyError, ValueError) as error:
            raise VectorError(f"{path} is damaged: {error}.") from None

    def __repr__(self) -> str:
        layers, *rest = self.values.shape
        parts = [
            f"{layers} layers of {'x'.join(map(str, rest))} at {self.kind}",
            f"read on {self.source.name}" + (f" at {self.at!r}" if self.at else ""),
        ]
        if self.prompts:
            parts.append(f"{len(self.prompts)} prompt{'s' * (len(self.prompts) > 1)}")
        if self.note:
            parts.append(self.note)
        return f"TaskVector({'; '.join(parts)})"


@savable
@dataclass(frozen=True)
class VectorEnsemble(LayerVectors, Savable):
    """A vector made of vectors: their mean, or weighted sum; usable wherever a vector is.

    Luo et al. 2025, section 4.3: the mean of an instruction's vector and the examples' vector.

    Attributes:
        vectors: TaskVectors or ensembles of one kind and shape.
        weights: One number a vector, used as they are; `1/n` each by default.
    """

    vectors: tuple[LayerVectors, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self):
        vectors = tuple(self.vectors)
        if not vectors:
            raise VectorError("An ensemble needs at least one vector.")
        for vector in vectors:
            if not isinstance(vector, TaskVector | VectorEnsemble):
                raise VectorError(
                    f"An ensemble is made of TaskVectors, not of {type(vector).__name__}: read "
                    "them with TaskVector.read."
                )
        shapes = {(v.kind, tuple(v.values.shape)) for v in vectors}
        if len(shapes) > 1:
            raise VectorError(f"An ensemble's vectors must be of one kind and shape; got {shapes}.")
        object.__setattr__(self, "vectors", vectors)
        if self.weights is not None:
            weights = tuple(float(w) for w in self.weights)
            if len(weights) != len(vectors):
                raise VectorError(
                    f"{len(vectors)} vectors need as many weights, not {len(weights)}."
                )
            object.__setattr__(self, "weights", weights)

    @property
    def kind(self) -> str:
        """Which point the vectors were read at."""
        return self.vectors[0].kind

    @cached_property
    def values(self) -> Tensor:
        """`[layers, d]`."""
        weights = self.weights or (1 / len(self.vectors),) * len(self.vectors)
        total = sum(w * v.values.double() for w, v in zip(weights, self.vectors, strict=True))
        return total.to(self.vectors[0].values.dtype)

    def origins(self) -> list[ModelFacts]:
        """The models of all its vectors."""
        return [origin for v in self.vectors for origin in v.origins()]


def _file(path: str | Path) -> Path:
    path = as_path(path, VectorError)
    return path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")
