"""One short text for a value, the same in every process, and another for another value."""

from __future__ import annotations

import dataclasses
import dis
import enum
import hashlib
import types
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vlm_lens.storage.weights import weights_digest

_ORIENTATION = 0x0112  # the EXIF tag by which viewers turn a picture


def fingerprint(*values: Any) -> str:
    """A hash of values by what they are: 16 hexadecimal digits.

    Tensors, arrays and pictures count by content; dataclasses and other objects by class and
    fields; functions by name, code, defaults, what they close over and which globals they read;
    modules of torch by their weights. Lists equal tuples, and the order of a mapping or a set does
    not matter. An object may say what it is itself, by a method `identity()` that returns a string.
    Of what has neither fields nor content only the class counts.

    Args:
        *values: What is to be told apart.
    """
    digest = _Digest()
    for value in values:
        digest.add(value)
    return digest.text()


def tensor_bytes(tensor: Tensor) -> bytes:
    """The content of a tensor, whatever its dtype."""
    held = tensor.detach().cpu().contiguous()
    if held.is_quantized:
        held = held.int_repr()
    return held.reshape(-1).view(torch.uint8).numpy().tobytes() if held.numel() else b""


class _Digest:
    """Goes through a value; one that holds itself is gone through once."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._open: list[int] = []

    def text(self) -> str:
        return self._hash.hexdigest()[:16]

    def say(self, kind: str, *parts: str | bytes) -> None:
        """Adds some text; lengths keep two texts from running into one another."""
        for part in (kind, *parts):
            raw = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
            self._hash.update(f"{len(raw)}:".encode() + raw)

    def add(self, value: Any) -> None:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            kind = "text" if isinstance(value, str) else type(value).__name__
            self.say(kind, value if isinstance(value, str | bytes) else repr(value))
        elif isinstance(value, np.generic):
            self.add(value.item())
        elif id(value) in self._open:
            self.say("again", str(len(self._open) - self._open.index(id(value))))
        else:
            self._open.append(id(value))
            try:
                self._add_structured(value)
            finally:
                self._open.pop()

    def _add_structured(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.say("tensor", str(value.dtype), str(tuple(value.shape)), tensor_bytes(value))
        elif isinstance(value, np.ndarray):
            self.say("array", str(value.dtype), str(value.shape))
            self.add(value.tolist() if value.dtype.hasobject else value.tobytes())
        elif isinstance(value, Image.Image):
            self._add_picture(value)
        elif isinstance(value, Mapping):
            self._add_unordered("mapping", [fingerprint(k, v) for k, v in value.items()])
        elif isinstance(value, set | frozenset):
            self._add_unordered("set", [fingerprint(v) for v in value])
        elif isinstance(value, list | tuple):
            self.say("sequence", str(len(value)))
            for one in value:
                self.add(one)
        elif isinstance(value, Path | range | slice | torch.dtype | torch.device):
            self.say(type(value).__name__, str(value))
        elif isinstance(value, enum.Enum):
            self.say(_named(type(value)), value.name)
        elif isinstance(value, types.CodeType):
            self._add_code(value)
        elif isinstance(value, types.MethodType):
            self.add((value.__func__, value.__self__))
        elif isinstance(value, types.FunctionType):
            self._add_function(value)
        elif isinstance(value, partial):
            self.add(("partial", value.func, value.args, value.keywords))
        elif isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, types.ModuleType | types.BuiltinFunctionType):
            self.say("named", getattr(value, "__module__", None) or "", value.__name__)
        else:
            self._add_object(value)

    def _add_picture(self, picture: Image.Image) -> None:
        self.say("picture", picture.mode, str(picture.size), picture.tobytes())
        palette = picture.getpalette("RGBA") if picture.mode in ("P", "PA") else None
        turned = picture.getexif().get(_ORIENTATION)
        self.add((palette, picture.info.get("transparency"), turned))

    def _add_unordered(self, kind: str, prints: list[str]) -> None:
        self.say(kind, *sorted(prints))

    def _add_function(self, function: types.FunctionType) -> None:
        self.say("function", function.__qualname__)
        self.add((function.__code__, function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # not filled yet
                self.say("empty")
        home = (function.__module__ or "").split(".")[0]
        for name in sorted(_globals_read(function.__code__)):
            if name in function.__globals__:
                value = function.__globals__[name]
                owner = (getattr(value, "__module__", None) or "").split(".")[0]
                libraries = isinstance(value, type | types.FunctionType) and owner != home
                self.say("global", name)
                self.add(f"{value.__module__}.{value.__qualname__}" if libraries else value)

    def _add_code(self, code: types.CodeType) -> None:
        self.say("code", code.co_code, " ".join((*code.co_names, *code.co_freevars)))
        self.add(code.co_consts)

    def _add_class(self, cls: type) -> None:
        """A class by its name, and if it is not of a library by its functions."""
        self.say("class", _named(cls))
        for base in cls.__mro__:
            if base.__module__.split(".")[0] in _LIBRARIES:
                continue
            for name, made in sorted(vars(base).items()):
                made = getattr(made, "__func__", getattr(made, "fget", None) or made)
                if isinstance(made, types.FunctionType) and made.__module__ == base.__module__:
                    self.say(name)
                    self.add((made.__code__, made.__defaults__))

    def _add_object(self, value: Any) -> None:
        says = getattr(value, "identity", None)
        if callable(says):
            self.say("says", _named(type(value)), str(says()))
            return
        self._add_class(type(value))
        if isinstance(value, nn.Module):
            self.say(str(weights_digest(value, exact=True)))
        elif hasattr(value, "hf_model") or hasattr(value, "get_vocab"):
            self.say("named", str(getattr(value, "name", getattr(value, "name_or_path", ""))))
        elif dataclasses.is_dataclass(value):
            self.add({f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init})
        else:
            self.add(dict(getattr(value, "__dict__", {})))


_LIBRARIES = frozenset(
    ("builtins", "vlm_lens", "torch", "transformers", "numpy", "abc", "typing", "functools")
)


def _globals_read(code: types.CodeType) -> set[str]:
    """Names of globals that code reads and does not itself set: settings, not counters."""
    read, written = set(), set()
    for one in _all_code(code):
        for step in dis.get_instructions(one):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                read.add(step.argval)
            elif step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                written.add(step.argval)
    return read - written


def _all_code(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _all_code(const)


def _named(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


__all__ = ["fingerprint", "tensor_bytes"]
