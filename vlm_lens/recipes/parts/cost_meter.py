"""How long something takes, and how much memory at its peak."""

from __future__ import annotations

import ctypes
import re
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import torch

__all__ = ["Meter"]

_STATUS, _REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Measures what is done while it is open: `with Meter(device) as m: ...; m.seconds, m.peak`.

    On CUDA, time is taken when the devices have finished, and memory is what PyTorch has allocated
    on all of them.
    On a CPU, memory is that of the whole process that is in RAM (RSS), which Linux alone tells;
    elsewhere, and where the system does not let the record of the peak be
    reset, it is missing (nan). Small amounts on a CPU disappear in what the allocator keeps.

    Args:
        *devices: Where the work is done.

    Attributes:
        seconds: Wall-clock time.
        before: Bytes in use at the beginning.
        peak: The most bytes in use meanwhile.
    """

    def __init__(self, *devices: Any):
        self._gpus = [d for d in map(torch.device, devices) if d.type == "cuda"]
        self.seconds = self.before = self.peak = float("nan")

    def __enter__(self) -> Self:
        if self._gpus:
            for gpu in self._gpus:
                torch.cuda.synchronize(gpu)
                torch.cuda.reset_peak_memory_stats(gpu)
            self.before = float(sum(map(torch.cuda.memory_allocated, self._gpus)))
        else:
            self._told = _give_back()
            self.before = _resident("VmRSS") if self._told else float("nan")
        self._start = perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        for gpu in self._gpus:
            torch.cuda.synchronize(gpu)
        self.seconds = perf_counter() - self._start
        if self._gpus:
            self.peak = float(sum(map(torch.cuda.max_memory_allocated, self._gpus)))
        else:
            self.peak = _resident("VmHWM") if self._told else float("nan")


def _give_back() -> bool:
    """Returns free memory to the system and resets the record of the peak; whether that was done.

    Without it the peak is that of the whole life of the process, which would pass for a number.
    """
    with suppress(OSError, AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _REFS.write_text("5")
    except OSError:
        return False
    return True


def _resident(field: str) -> float:
    """Bytes of this process in RAM: `VmRSS` now, `VmHWM` at the most."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return float("nan")
    return float(found.group(1)) * 1024 if found else float("nan")
