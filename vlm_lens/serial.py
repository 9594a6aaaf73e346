"""Frozen values on disk: JSON for what they are, safetensors for their tensors, never pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from vlm_lens.errors import VLMLensError
from vlm_lens.keywords import Answering
from vlm_lens.storage.files import (
    as_path,
    current,
    read_json,
    read_tensors,
    write_tensors,
    written_together,
)

T = TypeVar("T")
_CLASSES: dict[str, type] = {}
# Modules whose classes may stand in a file; imported when a name is not known yet.
_HOMES = (
    "vlm_lens.layout.pictures",
    "vlm_lens.layout.typed",
    "vlm_lens.layout.layout",
    "vlm_lens.layout.positions",
    "vlm_lens.interventions",
    "vlm_lens.measures",
    "vlm_lens.reading.vectors",
    "vlm_lens.hooked.cache",
    "vlm_lens.hooked.cache_files",
    "vlm_lens.reading.mean",
    "vlm_lens.dictionaries",
    "vlm_lens.directions",
    "vlm_lens.lenses",
    "vlm_lens.reading.samples",
)


def savable(cls: type[T]) -> type[T]:
    """Registers a frozen dataclass, so that `pack` and `unpack` know it by its name."""
    name = cls.__name__
    if name in _CLASSES and _CLASSES[name].__qualname__ != cls.__qualname__:
        raise TypeError(f"Two savable classes are named {name}.")
    _CLASSES[name] = cls
    return cls


@savable
@dataclass(frozen=True, eq=False)
class FrozenTensor:
    """A tensor as a value: detached, on the CPU, compared and hashed by its content."""

    data: Tensor

    def __post_init__(self):
        object.__setattr__(self, "data", self.data.detach().to("cpu", copy=True).contiguous())

    @property
    def content(self) -> Tensor:
        """What it holds, detached and on the CPU."""
        return self.data

    @property
    def extremes(self) -> tuple[bool, bool]:
        """Whether it holds NaN, and whether infinity; looked at once, as it does not change."""
        known = vars(self).get("_extremes")
        if known is None:
            known = bool(self.data.isnan().any()), bool(self.data.isinf().any())
            object.__setattr__(self, "_extremes", known)
        return known

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FrozenTensor):
            return False
        mine, theirs = self.content, other.content
        return mine.dtype == theirs.dtype and torch.equal(mine, theirs)

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """A hash of shape, dtype and content."""
        content = self.content
        raw = content.reshape(-1).view(torch.uint8)
        head = f"{tuple(content.shape)}{content.dtype}".encode()
        return hashlib.sha256(head + raw.numpy().tobytes()).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"tensor{list(self.data.shape)}"


@dataclass(frozen=True, eq=False)
class LearnedTensor(FrozenTensor):
    """A tensor that is being learned, as a value: it stays what and where it is, with its graph.

    It is compared, hashed and saved by the content that it has at that time; what is loaded again
    is a plain FrozenTensor.
    """

    def __post_init__(self):
        pass

    @property
    def extremes(self) -> tuple[bool, bool]:
        """Whether it holds NaN now, and whether infinity."""
        return bool(self.data.isnan().any()), bool(self.data.isinf().any())

    @property
    def content(self) -> Tensor:
        """What it holds now, detached and on the CPU."""
        return self.data.detach().cpu().contiguous()

    def __repr__(self) -> str:
        return f"learned tensor{list(self.data.shape)}"


def as_frozen(tensor: Tensor) -> FrozenTensor:
    """A tensor as a value: a copy, or the tensor itself where it requires grad."""
    return LearnedTensor(tensor) if tensor.requires_grad else FrozenTensor(tensor)


class Savable(Answering):
    """Gives a registered value files of its own."""

    def save(self, stem: str | Path) -> Path:
        """Writes `stem.json` and, where there are tensors, `stem.safetensors`."""
        return save(self, stem)

    @classmethod
    def load(cls, stem: str | Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            VLMLensError: No such file, or it holds something else.
        """
        return load(stem, cls)


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value as plain JSON data; its tensors are put into `tensors` under the keys named there."""
    if isinstance(value, FrozenTensor):
        known = (k for k, t in tensors.items() if t is value.content)  # one tensor, written once
        key = next(known, f"t{len(tensors)}")
        tensors[key] = value.content
        return {"tensor": key}
    if dataclasses.is_dataclass(value) and type(value).__name__ in _CLASSES:
        fields = {
            f.name: pack(getattr(value, f.name), tensors)
            for f in dataclasses.fields(value)
            if f.init
        }
        return {"type": type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [pack(v, tensors) for v in value]
    if isinstance(value, dict):
        return {"dict": {str(k): pack(v, tensors) for k, v in value.items()}}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise VLMLensError(f"{type(value).__name__} cannot be saved: {value!r}")


def unpack(data: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `pack`; lists come back as tuples."""
    if isinstance(data, list):
        return tuple(unpack(v, tensors) for v in data)
    if not isinstance(data, dict):
        return data
    if "tensor" in data:
        return FrozenTensor(tensors[data["tensor"]])
    if "dict" in data:
        return {k: unpack(v, tensors) for k, v in data["dict"].items()}
    cls = _class_named(data.get("type"))
    return cls(**{k: unpack(v, tensors) for k, v in data.items() if k != "type"})


def _class_named(name: str | None) -> type:
    for home in _HOMES:
        if name in _CLASSES:
            break
        import_module(home)
    if name not in _CLASSES:
        raise VLMLensError(
            f"The file holds a {name!r}, which this version of vlm_lens does not know."
        )
    return _CLASSES[name]


def save(value: Any, stem: str | Path) -> Path:
    """Writes `stem.json` and, for tensors, `stem.safetensors`; returns the JSON path.

    Both are of one save, wherever the process ends.

    Raises:
        VLMLensError: It holds what cannot be saved, or the files cannot be written.
    """
    path = as_path(stem)
    tensors: dict[str, Tensor] = {}
    data = pack(value, tensors)
    names = [f"{path.name}{suffix}" for suffix in (".json", ".safetensors")]
    with written_together(path.parent, path.name, remove=names) as to:
        if tensors:
            write_tensors(to / names[1], tensors)
        text = json.dumps({"vlm_lens": 1, "value": data}, indent=1)
        (to / names[0]).write_text(text, encoding="utf-8")
    return path.with_name(names[0])


def load(stem: str | Path, expected: type[T]) -> T:
    """Reads what `save` wrote.

    Raises:
        VLMLensError: No such file, not one of ours, damaged, or another kind of value.
    """
    path = as_path(stem)
    path = path.with_name(path.name.removesuffix(".json"))
    target, side = (path.with_name(path.name + suffix) for suffix in (".json", ".safetensors"))
    data = read_json(current(target, path.name))
    if not isinstance(data, dict) or "vlm_lens" not in data:
        raise VLMLensError(f"{target} was not saved by vlm_lens.")
    held = current(side, path.name)
    tensors = read_tensors(held)[0] if held.exists() else {}
    value = unpacked(data.get("value"), tensors, target)
    if not isinstance(value, expected):
        raise VLMLensError(f"{target} holds a {type(value).__name__}, not a {expected.__name__}.")
    return value


def unpacked(data: Any, tensors: dict[str, Tensor], path: Path) -> Any:
    """As `unpack`, of a file.

    Raises:
        VLMLensError: Something is missing in the file, or stands there that cannot be.
    """
    try:
        return unpack(data, tensors)
    except VLMLensError:
        raise
    except KeyError as error:
        raise VLMLensError(f"{path}: there is no tensor {error} beside it.") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise VLMLensError(f"{path} is damaged or of another version: {error}.") from None
