"""A value as bytes and buffers, so that processes of one machine can share its tensors.

Pickle's fifth protocol leaves buffers out of the stream of bytes. Those of tensors' storages are
left out here too: a process that finds them in shared memory makes tensors of them without a copy.
Tensors that share a storage, as tied weights do, share it afterwards. Of frozen tensors, which are
values and do not change, those that are equal travel once: of a thousand interventions that were
made of one vector each holds a copy.
"""

from __future__ import annotations

import ctypes
import io
import pickle
import warnings
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import torch

from vlm_lens.distributed.refusal import DistributedError
from vlm_lens.serial import FrozenTensor
from vlm_lens.storage.files import write_whole

_SMALL = 1 << 16  # bytes that are copied: they may be written to, what is shared may not
_HOOKS = "transformers.utils.output_capturing"
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
        self._values: dict[str, FrozenTensor] = {}  # by their digest

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is FrozenTensor:
            first = self._values.setdefault(obj.digest, obj)
            if first is not obj:
                return _itself, (first,)
        if isinstance(obj, torch.storage.TypedStorage):
            return _typed, (obj._untyped_storage, obj.dtype)
        if isinstance(obj, torch.UntypedStorage):
            array, offset = _whole_lines(obj if obj.device.type == "cpu" else obj.cpu())
            return _storage, (pickle.PickleBuffer(array), offset, str(obj.device))
        if isinstance(obj, torch.device):
            return _device, (str(obj),)
        if isinstance(obj, FunctionType) and obj.__module__ == _HOOKS and "<locals>" in str(obj):
            return _dropped_hook, ()
        return super().reducer_override(obj)


def dropped_hook(module: Any, args: Any, output: Any) -> None:
    """Stands where transformers had put on a hook, which knows the other process's state."""


def _dropped_hook() -> FunctionType:
    return dropped_hook  # type: ignore[return-value]


def _itself(value: FrozenTensor) -> FrozenTensor:
    return value


def _typed(storage: torch.UntypedStorage, dtype: torch.dtype) -> torch.storage.TypedStorage:
    return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


class _Owned(np.ndarray):
    """An array that keeps alive what its memory belongs to."""

    owner: Any = None


def _whole_lines(storage: torch.UntypedStorage) -> tuple[np.ndarray, int]:
    """A storage's bytes from the beginning of their cache line on, and where there it begins.

    Kernels sum in another order where numbers lie elsewhere in a line, and the last bits differ.
    What stands before in the line is in the same page of memory, so it can be read.
    """
    if not storage.nbytes():
        return np.empty(0, dtype=np.uint8), 0
    offset = storage.data_ptr() % _ALIGNED
    kind = ctypes.c_uint8 * (storage.nbytes() + offset)
    array = np.frombuffer(kind.from_address(storage.data_ptr() - offset), np.uint8).view(_Owned)
    array.owner = storage
    return array, offset


def _device(name: str) -> torch.device:
    """A device of another process, here: a worker counts the GPUs that it sees from 0."""
    device = torch.device(name)
    if device.type != "cuda" or (device.index or 0) < torch.cuda.device_count():
        return device
    return torch.device("cuda", 0)


def _storage(buffer: Any, offset: int, name: str) -> torch.UntypedStorage:
    array, device = np.frombuffer(buffer, dtype=np.uint8), _device(name)
    if not array.nbytes:
        return torch.UntypedStorage(0, device=device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DistributedError(
            "What was sent lies on a GPU, and this worker has none: give Ray(num_gpus=1), or move "
            "the model to the CPU first."
        )
    if array.ctypes.data % _ALIGNED:  # one that is small, in the stream
        room = np.empty(array.nbytes + _ALIGNED, dtype=np.uint8)
        start = -room.ctypes.data % _ALIGNED
        room[start : start + array.nbytes] = array
        array = room[start : start + array.nbytes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it cannot be written to: nothing here writes
        found = torch.frombuffer(array, dtype=torch.uint8, offset=offset).untyped_storage()
    return found if device.type == "cpu" else found.to(device=device)


__all__ = ["Packed", "dropped_hook", "pack", "read_packed", "unpack", "write_packed"]
