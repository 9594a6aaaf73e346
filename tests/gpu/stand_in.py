"""Devices that are not there: tensors say that they lie on them, and the CPU computes them.

What CUDA refuses is refused here too: operands on two devices, indices of the device into a tensor
of the CPU, `.numpy()` of a tensor of the device. What makes the host wait for a GPU is counted. So
code that forgets where its tensors lie fails on a machine without a GPU. There are several, as
there are several cards in a machine: a model's layers may be spread over them.

It is torch's PrivateUse1 backend, written in Python (`torch.utils.backend_registration`), with a
tensor that wraps a plain one. Kernels and memory are those of the CPU. Sums of float32 are taken in
float64 and rounded once, so that the last bits are others than the CPU's, as a GPU's are.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "standin"
COUNT = 3  # devices
available = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
waits: Counter[str] = Counter()  # operations for whose result the host waits

_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
# they take a CPU's index into a tensor of the device, and its single number as the value
_INDEXED = {
    _aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default,
    _aten._index_put_impl_.default,
}  # fmt: skip
# of operands of no dimension, elementwise operations take those of the CPU, these do not
_STRICT = {
    "mm", "bmm", "addmm", "cat", "stack", "embedding", "index_select", "gather", "scatter",
    "index_add_", "index_add", "index_copy_", "index_copy", "scatter_add", "scatter_add_",
}  # fmt: skip
_SUMMED = {"mm", "bmm", "addmm", "baddbmm", "convolution", "convolution_overrideable", "_softmax",
           "_log_softmax", "native_layer_norm", "mean", "sum"}  # fmt: skip
# torch makes them by growing an empty tensor, and a wrapped one does not grow
_MADE_IN_PLACE = (
    _aten.arange.default, _aten.arange.start, _aten.arange.start_step, _aten.linspace.default,
    _aten.eye.default, _aten.eye.m, _aten.randperm.default,
)  # fmt: skip
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim"}


class Far(Tensor):
    """A tensor of a device; `near` is the one that the CPU computes with."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor, index: int = 0, requires_grad: bool | None = None) -> Far:
        """Wraps a plain tensor, with its strides, as one of the device of that index.

        It becomes a parameter where gradients are spoken of: accelerate calls the class of the
        parameter that it replaces.
        """
        if requires_grad is not None:
            return torch.nn.Parameter(near.detach(), requires_grad)
        made = Tensor._make_wrapper_subclass(
            cls, near.size(), strides=near.stride(), storage_offset=near.storage_offset(),
            dtype=near.dtype, device=torch.device(NAME, index),
        )  # fmt: skip
        made.near = near
        return made

    def __init__(self, near: Tensor, index: int = 0, requires_grad: bool | None = None):
        """Nothing is left to do."""

    def data_ptr(self) -> int:
        """Where its numbers lie, by which accelerate knows weights that are tied."""
        return self.near.data_ptr()

    def tolist(self) -> Any:
        """Its numbers; torch's own refuses subclasses."""
        return self.detach().cpu().tolist()

    def __getitem__(self, places: Any) -> Tensor:
        return super().__getitem__(_indices(places, self.device))

    def __setitem__(self, places: Any, value: Any) -> None:
        super().__setitem__(_indices(places, self.device), value)

    def __repr__(self, **_: Any) -> str:
        return f"{self.device} {self.detach().cpu()!r}"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def __reduce_ex__(self, protocol: int) -> Any:
        return _moved, (self.detach().cpu(), self.requires_grad, str(self.device))

    def __deepcopy__(self, memo: dict) -> Far:
        made = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        return memo.setdefault(id(self), made)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Computes an operation on the CPU, if CUDA would."""
        return _compute(func, args, kwargs or {})


def _indices(places: Any, device: torch.device) -> Any:
    """Lists as tensors of the device, which torch would make of them below the dispatcher."""
    if isinstance(places, tuple):
        return tuple(_index(one, device) for one in places)
    return _index(places, device)


def _index(places: Any, device: torch.device) -> Any:
    if isinstance(places, (tuple, list, range, np.ndarray)):
        made = torch.as_tensor(np.asarray(places))
        return made.to(device, None if made.numel() else torch.long)
    return places


def _moved(near: Tensor, requires_grad: bool, device: str) -> Tensor:
    return near.to(device).requires_grad_(requires_grad)


class _Module(backend_registration._DummyBackendModule):
    """What torch asks of a backend."""

    def device_count(self) -> int:
        """How many there are."""
        return COUNT


@cache
def device() -> torch.device:
    """The first device, made known to torch at the first call, for as long as the process lives."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda op, *args, **kwargs: _compute(op, args, kwargs), "PrivateUse1")
    _kept.append(library)
    made = torch.library.Library("aten", "IMPL")
    for op in _MADE_IN_PLACE:
        made.impl(op, _kernel(op), "PrivateUse1")
    _kept.append(made)
    torch.__future__.set_swap_module_params_on_conversion(True)  # tied weights stay tied
    _device_constructors()  # remembers the functions that a device's context acts on, before
    for name in ("tensor", "as_tensor", "asarray"):  # they make their tensor below the dispatcher
        setattr(torch, name, _on_device(getattr(torch, name)))
    return torch.device(NAME, 0)


_kept: list[Any] = []
compiler = shutil.which("c++") or shutil.which("g++")


@cache
def several() -> None:
    """Lets gradients flow between the devices, which torch's own backend in Python knows one of."""
    device()
    here = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        made = f"{folder}/guard.so"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-std=c++20", f"-DCOUNT={COUNT}", "-o", made,
             Path(__file__).parent / "guard.cpp", f"-I{here}/include", f"-L{here}/lib", "-lc10"],
            check=True,
        )  # fmt: skip
        _kept.append(ctypes.CDLL(made))


def _kernel(op: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: _compute(op, args, kwargs)


def _on_device(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is None:  # that of a context, if there is one
            device = torch.empty(0).device if torch.empty(0).device.type == NAME else None
        far = device is not None and torch.device(device).type == NAME
        if isinstance(data, Tensor) and (far or isinstance(data, Far)):
            return data.to(**kwargs, **({} if device is None else {"device": device}))
        if isinstance(data, (list, tuple)):  # of single numbers of the device, each read by itself
            data = tree_map_only(Far, Far.tolist, data)
        if far:
            return plain(data, *args, device="cpu", **kwargs).to(device)
        return plain(data, *args, **kwargs, **({} if device is None else {"device": device}))

    return made


def _compute(func: Any, args: tuple, kwargs: dict) -> Any:
    if func._can_decompose():
        out = func.decompose(*args, **kwargs)
        if out is not NotImplemented:
            return out
    operands = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    far = [x for x in operands if isinstance(x, Far)]
    name = func._schema.name.removeprefix("aten::")
    asked = kwargs.get("device")
    goes_far = bool(far) if asked is None else torch.device(asked).type == NAME
    index = (far[0].device if asked is None and far else torch.device(asked or "cpu")).index or 0
    if name == "copy_":
        goes_far = isinstance(args[0], Far)
    if not 0 <= index < COUNT:
        raise RuntimeError(f"There are {COUNT} devices {NAME}, and {name} wants number {index}")
    if func not in _COPIES:
        _check(func, name, args, operands)
    _count(func, name, args, bool(far), goes_far)
    near_args, near_kwargs = tree_map_only(Far, lambda x: x.near, (args, kwargs))
    if asked is not None and goes_far:
        near_kwargs = near_kwargs | {"device": torch.device("cpu")}
    # whole numbers, too, which the CPU does not count
    wide = bool(far) and (name == "histc" or (name in _SUMMED and far[0].dtype == torch.float32))
    if wide:
        near_args = tree_map_only(Tensor, lambda x: _as(x, far[0].dtype, torch.float64), near_args)
    out = func(*near_args, **near_kwargs)
    if wide:
        out = tree_map_only(Tensor, lambda x: _as(x, torch.float64, far[0].dtype), out)
    if name == "_local_scalar_dense" or not goes_far:
        return out
    own = {id(x.near): x for x in far}  # what an operation in place hands back
    return tree_map_only(Tensor, lambda x: own[id(x)] if id(x) in own else Far(x, index), out)


def _as(x: Tensor, of: torch.dtype, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.dtype == of else x


def _check(func: Any, name: str, args: tuple, operands: list[Tensor]) -> None:
    """Refuses operands on two devices, as CUDA does."""
    devices = {x.device for x in operands}
    if len(devices) < 2:
        return
    if func in _INDEXED:
        mine = args[0].device
        indices = [x for x in args[1] if x is not None]
        values = [x for x in args[2:3] if x.dim() or mine.type == "cpu"]
        wrong = any(x.device not in (mine, torch.device("cpu")) for x in indices)
        wrong |= any(x.device != mine for x in values)
    else:
        near = [x for x in operands if not isinstance(x, Far)]
        wrong = len(devices) - bool(near) > 1 or name in _STRICT or any(x.dim() for x in near)
    if wrong:
        found = ", ".join(f"{list(x.shape)} on {x.device}" for x in operands)
        raise RuntimeError(f"{name}: operands must be on one device, found {found}")


def _count(func: Any, name: str, args: tuple, far: bool, goes_far: bool) -> None:
    to_host = name == "_to_copy" and far and not goes_far
    to_host |= name == "copy_" and not goes_far and isinstance(args[1], Far)
    masked = func in _INDEXED and any(
        isinstance(x, Far) and x.dtype in (torch.bool, torch.uint8) for x in args[1]
    )
    if to_host or masked or (far and name in _WAITS):
        waits["to host" if to_host else "mask" if masked else name] += 1
