"""A device that is not there: tensors say that they lie on it, and the CPU computes them.

What CUDA refuses is refused here too: operands on two devices, indices of the device into a tensor
of the CPU, `.numpy()` of a tensor of the device. What makes the host wait for a GPU is counted. So
code that forgets where its tensors lie fails on a machine without a GPU.

It is torch's PrivateUse1 backend, written in Python (`torch.utils.backend_registration`), with a
tensor that wraps a plain one. Kernels, their rounding and memory are those of the CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "standin"
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
# torch makes them by growing an empty tensor, and a wrapped one does not grow
_MADE_IN_PLACE = (
    _aten.arange.default, _aten.arange.start, _aten.arange.start_step, _aten.linspace.default,
    _aten.eye.default, _aten.eye.m, _aten.randperm.default,
)  # fmt: skip
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim"}


class Far(Tensor):
    """A tensor of the device; `near` is the one that the CPU computes with."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        """Wraps a plain tensor, with its strides."""
        made = Tensor._make_wrapper_subclass(
            cls, near.size(), strides=near.stride(), storage_offset=near.storage_offset(),
            dtype=near.dtype, device=torch.device(NAME, 0),
        )  # fmt: skip
        made.near = near
        return made

    def __init__(self, near: Tensor):
        """Nothing is left to do."""

    def tolist(self) -> Any:
        """Its numbers; torch's own refuses subclasses."""
        return self.detach().cpu().tolist()

    def __getitem__(self, places: Any) -> Tensor:
        return super().__getitem__(_indices(places))

    def __setitem__(self, places: Any, value: Any) -> None:
        super().__setitem__(_indices(places), value)

    def __repr__(self, **_: Any) -> str:
        return f"{NAME} {self.detach().cpu()!r}"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def __reduce_ex__(self, protocol: int) -> Any:
        return _moved, (self.detach().cpu(), self.requires_grad)

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


def _indices(places: Any) -> Any:
    """Lists as tensors of the device, which torch would make of them below the dispatcher."""
    if isinstance(places, tuple):
        return tuple(_index(one) for one in places)
    return _index(places)


def _index(places: Any) -> Any:
    if isinstance(places, (tuple, list, range, np.ndarray)):
        made = torch.as_tensor(np.asarray(places))
        return made.to(NAME, None if made.numel() else torch.long)
    return places


def _moved(near: Tensor, requires_grad: bool) -> Tensor:
    return near.to(NAME).requires_grad_(requires_grad)


@cache
def device() -> torch.device:
    """The device, made known to torch at the first call and for as long as the process lives."""
    backend_registration._setup_privateuseone_for_python_backend(NAME)
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


def _kernel(op: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: _compute(op, args, kwargs)


def _on_device(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        far = device is not None and torch.device(device).type == NAME
        if isinstance(data, Tensor) and (far or isinstance(data, Far)):
            return data.to(**kwargs, **({} if device is None else {"device": device}))
        if isinstance(data, (list, tuple)):  # of single numbers of the device, each read by itself
            data = tree_map_only(Far, Far.tolist, data)
        if far:
            return plain(data, *args, **kwargs).to(device)
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
    if name == "copy_":
        goes_far = isinstance(args[0], Far)
    if func not in _COPIES:
        _check(func, name, args, operands)
    _count(func, name, args, bool(far), goes_far)
    near_args, near_kwargs = tree_map_only(Far, lambda x: x.near, (args, kwargs))
    if asked is not None and goes_far:
        near_kwargs = near_kwargs | {"device": torch.device("cpu")}
    out = func(*near_args, **near_kwargs)
    if name == "_local_scalar_dense" or not goes_far:
        return out
    own = {id(x.near): x for x in far}  # what an operation in place hands back
    return tree_map_only(Tensor, lambda x: own[id(x)] if id(x) in own else Far(x), out)


def _check(func: Any, name: str, args: tuple, operands: list[Tensor]) -> None:
    """Refuses operands on two devices, as CUDA does."""
    near = [x for x in operands if not isinstance(x, Far)]
    if not near or len(near) == len(operands):
        return
    if func in _INDEXED:
        indices = [x for x in args[1] if x is not None]
        values = [x for x in args[2:3] if x.dim()]
        if isinstance(args[0], Far):
            wrong = any(not isinstance(x, Far) for x in values)
        else:
            wrong = any(isinstance(x, Far) for x in (*indices, *args[2:3]))
    else:
        wrong = name in _STRICT or any(x.dim() for x in near)
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
