"""Memory of activations that their callers have let go of, used again by the next run that reads.

What is kept of a run cannot be used again by the run itself, as the rest of its memory is, so that
all of it comes fresh from the kernel, page by page, which costs more than a copy:

    run 1    activations stay what they are; their memory is noted
    run 2    the caller still holds those of run 1: likewise
    run 3    those of run 1 are let go of: each activation is copied into memory of its size

Memory counts as let go of where nothing else refers to it: no tensor, view, array or storage.
"""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from functools import cache
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from vlm_lens.engine.ownership import OfProcess
from vlm_lens.points.sites import overlaps

_LEAST = 1 << 16  # bytes: what is smaller comes from memory that the process has already
_MOST = 512 << 20  # bytes that are noted, and so may stay with the process
_uses = getattr(torch._C, "_storage_Use_Count", None)


class Buffers(OfProcess):
    """The memory that runs of one model have handed out, on the CPU."""

    def __init__(self):
        self._lock = threading.Lock()
        # address -> the bytes of a storage, once however many views of it are read; the latest last
        self._noted: dict[int, Tensor] = {}
        self._n_bytes = 0

    def reader(self) -> Reader:
        """What keeps the activations of one run."""
        free: dict[int, list[Tensor]] = defaultdict(list)
        with self._lock:
            noted, self._noted = self._noted, {}
            for address, memory in noted.items():
                if _is_let_go(memory):
                    free[memory.nbytes].append(memory)
                    self._n_bytes -= memory.nbytes
                else:
                    self._noted[address] = memory
        return Reader(self, free)

    def note(self, memory: Tensor) -> None:
        """Remembers memory that is handed out; what was noted first is forgotten first."""
        with self._lock:
            if (before := self._noted.pop(memory.data_ptr(), None)) is not None:
                self._n_bytes -= before.nbytes
            self._noted[memory.data_ptr()] = memory
            self._n_bytes += memory.nbytes
            while self._n_bytes > _MOST:
                self._n_bytes -= self._noted.pop(next(iter(self._noted))).nbytes

    @property
    def n_bytes(self) -> int:
        """How many bytes are noted."""
        return self._n_bytes


class Reader:
    """Keeps the activations of one run; memory that it finds no use for is given back.

    Args:
        buffers: Where memory is noted.
        free: Memory that may be used, by its size in bytes.
    """

    def __init__(self, buffers: Buffers, free: dict[int, list[Tensor]]):
        self._buffers, self._free = buffers, free
        # what leaves a block enters the next one: kept once. By identity of what lives
        self._known: dict[int, tuple[ref[Tensor], int, Tensor]] = {}

    def keep(self, x: Tensor, firing: Any = None) -> Tensor:
        """An activation, bit for bit: a copy in memory that was let go of, or itself."""
        if not _can_be_kept(x):
            return x
        known = self._known.get(id(x))
        if known is not None and known[0]() is x and known[1] == x._version:
            return known[2]
        kept = x
        if free := self._free.get(x.nbytes):
            memory = free.pop()
            kept = torch.empty(0, dtype=x.dtype)
            kept.set_(memory.untyped_storage(), 0, x.shape, x.stride()).copy_(x)
        else:
            memory = _bytes_of(x)
        self._buffers.note(memory)
        self._known[id(x)] = ref(x), x._version, kept
        return kept


def _can_be_kept(x: Tensor) -> bool:
    """Whether it is a plain tensor that fills memory of its own, and no gradients are recorded."""
    if _uses is None or torch.is_grad_enabled() or type(x) is not Tensor or x.is_inference():
        return False
    if x.device.type != "cpu" or x.layout != torch.strided or x.is_conj() or x.is_neg():
        return False
    storage = x.untyped_storage()
    whole = x.nbytes == storage.nbytes() and x.nbytes >= _LEAST and not overlaps(x)
    return whole and storage.resizable()  # not so: of a file, or of another library


def _is_let_go(memory: Tensor) -> bool:
    """Whether nothing but this tensor refers to its memory, here or in another process."""
    storage = memory.untyped_storage()
    whole = storage.nbytes() == memory.nbytes and not storage.is_shared()
    del storage
    return whole and _references(memory) == _alone()


def _references(memory: Tensor) -> tuple[int, int]:
    """How many tensors and the like refer to a tensor's storage, and how many names to its object.

    Both count what this function itself makes, which depends on the version of torch.
    """
    storage = memory.untyped_storage()
    return _uses(storage._cdata), sys.getrefcount(storage)


@cache
def _alone() -> tuple[int, int]:
    """The references of memory that nothing else refers to."""
    return _references(_bytes_of(torch.zeros(8)))


def _bytes_of(x: Tensor) -> Tensor:
    """All of a tensor's memory."""
    return torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage())


__all__ = ["Buffers", "Reader"]
