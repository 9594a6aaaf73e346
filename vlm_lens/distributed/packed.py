"""A value as bytes and buffers, so that processes of one machine can share its tensors.

Pickle's fifth protocol leaves buffers out of the stream of bytes. Those of tensors' storages are
left out here too: a process that finds them in shared memory makes tensors of them without a copy.
Tensors that share a storage, as tied weights do, share it afterwards.
"""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import torch

from vlm_lens.distributed.refusal import DistributedError
from vlm_lens.storage.files import write_whole

_SMALL = 1 << 16  # bytes that are copied: they may be written to, what is shared may not
_ALIGNED = 64  # as torch's allocator and Ray's store do


class Packed(NamedTuple):
    """A value for another process.

    Attributes:
        pickled: The value without its large buffers.
        buffers: The buffers, arrays of bytes.
    """

    pickled: bytes
    buffers: list[np.ndarray]

    @property
    def nbytes(self) -> int:
        """How many bytes are sent."""
        return len(self.pickled) + sum(b.nbytes for b in self.buffers)


def pack(value: Any, what: str) -> Packed:
    """A value for another process, functions that were written in this one included.

    Args:
        value: Anything.
        what: What it is, for the message.

    Raises:
        DistributedError: It holds what cannot be sent, such as an open file or a lock.
    """
    file, buffers = io.BytesIO(), []
    try:
        _Pickler(file, buffers).dump(value)
    except Exception as error:  # pickle raises whatever the value's own code raises
        raise DistributedError(
            f"{what} cannot be sent to another process ({type(error).__name__}: "
            f"{str(error)[:200]}): give functions and values that hold no open files, locks, "
            "models or generators, or leave on= out."
        ) from error
    return Packed(file.getvalue(), buffers)


def unpack(packed: Packed) -> Any:
    """The value; its large tensors lie where the buffers do, and must not be written to."""
    return pickle.loads(packed.pickled, buffers=packed.buffers)


def write_packed(folder: Path, name: str, packed: Packed) -> None:
    """Writes a value to two files of a folder."""
    sizes = [b.nbytes for b in packed.buffers]

    def fill(path: Path) -> None:
        with path.open("wb") as file:
            for buffer in packed.buffers:
                file.write(memoryview(buffer))
                file.write(bytes(-buffer.nbytes % _ALIGNED))

    write_whole(folder / f"{name}.buffers", fill)
    write_whole(folder / f"{name}.pickle", pickle.dumps((packed.pickled, sizes)))


def read_packed(folder: Path, name: str) -> Packed:
    """What `write_packed` wrote; processes that read it share the pages of its buffers."""
    pickled, sizes = pickle.loads((folder / f"{name}.pickle").read_bytes())
    buffers, start = [], 0
    for size in sizes:
        path = folder / f"{name}.buffers"
        buffers.append(np.memmap(path, dtype=np.uint8, mode="c", offset=start, shape=(size,)))
        start += size + -size % _ALIGNED
    return Packed(pickled, buffers)


class _Pickler(cloudpickle.Pickler):
    def __init__(self, file: io.BytesIO, buffers: list[np.ndarray]):
        def inside(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes < _SMALL:
                return True
            buffers.append(np.frombuffer(raw, dtype=np.uint8))
            return False

        super().__init__(file, protocol=5, buffer_callback=inside)

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.storage.TypedStorage):
            return _typed, (obj._untyped_storage, obj.dtype)
        if isinstance(obj, torch.UntypedStorage):
            cpu = obj if obj.device.type == "cpu" else obj.cpu()
            array = torch.empty(0, dtype=torch.uint8).set_(cpu).numpy()
            return _storage, (pickle.PickleBuffer(array), obj.device.type)
        return super().reducer_override(obj)


def _typed(storage: torch.UntypedStorage, dtype: torch.dtype) -> torch.storage.TypedStorage:
    return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


def _storage(buffer: Any, device: str) -> torch.UntypedStorage:
    if not memoryview(buffer).nbytes:
        return torch.UntypedStorage(0, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it cannot be written to: nothing here writes
        found = torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()
    return found if device == "cpu" else found.to(device=device)


__all__ = ["Packed", "pack", "read_packed", "unpack", "write_packed"]
