"""Processes of this machine, by joblib's loky."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from vlm_lens.distributed.packed import Packed, pack, read_packed, unpack, write_packed
from vlm_lens.distributed.refusal import DistributedError
from vlm_lens.distributed.source import sent
from vlm_lens.distributed.worker import Failure, Worker, versions
from vlm_lens.distributed.workers import Job, OtherWorkers, Queue, Task
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.integers import as_integer

_MODEL = "model"
_WORKER: dict[str, Worker] = {}


@dataclass(frozen=True)
class Loky:
    """Processes of this machine: `on=Loky(workers=4)`, or `on="loky"`.

    Weights are written to a temporary file once, and its pages are shared by all processes; a model
    on a GPU is put there once more by each.

    Attributes:
        workers: How many processes, each with one thread; as many as there are cores by default.
    """

    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and as_integer(self.workers, "workers", DistributedError) < 1:
            raise DistributedError(f"workers is at least 1, not {self.workers}.")

    def open(self, vlm: HookedModel) -> LokyWorkers:
        """The processes, with a model: a context manager, for several calls.

        Raises:
            DistributedError: The model cannot be sent.
        """
        return LokyWorkers(vlm, self.workers or len(os.sched_getaffinity(0)))


class LokyWorkers(OtherWorkers):
    """Processes of this machine; see `Loky`.

    Args:
        vlm: The model.
        n: How many.
    """

    def __init__(self, vlm: HookedModel, n: int):
        super().__init__(vlm)
        self.n = n
        self._folder = tempfile.TemporaryDirectory(prefix="vlm_lens-")
        write_packed(Path(self._folder.name), _MODEL, pack(sent(vlm), "The model"))
        self._pool: Any = None

    def run(self, task: Task, chunks: Iterable[Any]) -> Iterator[Any]:
        """What `task` yields for each chunk, in the order in which chunks are finished."""
        key, queue = token_hex(8), Queue(chunks)
        write_packed(Path(self._folder.name), key, self.packed(task))
        at_work: dict[Any, Job] = {}
        try:
            while True:
                while len(at_work) < self.n and (job := queue.next()):
                    at_work[self._submit(key, job)] = job
                if not at_work:
                    return
                done, _ = wait(at_work, return_when=FIRST_COMPLETED)
                for future in done:
                    try:
                        found = unpack(future.result())
                    except BrokenProcessPool as error:  # one died: loky ends them all
                        self._end()
                        for job in at_work.values():
                            queue.put_back(job, error)
                        at_work.clear()
                        break
                    del at_work[future]
                    if isinstance(found, Failure):
                        found.throw()
                    yield from found
        finally:
            if at_work:
                self._end()

    def close(self) -> None:
        """Ends the processes."""
        self._end()
        self._folder.cleanup()

    def _submit(self, key: str, job: Job) -> Any:
        from joblib.externals.loky import ProcessPoolExecutor

        if self._pool is None:
            start = (self._folder.name, os.getpid(), versions())
            self._pool = ProcessPoolExecutor(self.n, initializer=_start, initargs=start)
        try:
            return self._pool.submit(_work, self._folder.name, key, job.chunk)
        except BrokenProcessPool:  # noticed here first: what is under way says so too
            self._end()
            return self._submit(key, job)

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, kill_workers=True)
            self._pool = None


def _start(folder: str, parent: int, libraries: dict[str, str | None]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this one
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _WORKER["it"] = Worker(read_packed(Path(folder), _MODEL), 1, libraries)


def _end_with(parent: int) -> None:
    """A worker whose parent was killed has nobody to work for."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _work(folder: str, key: str, chunk: Packed) -> Packed:
    worker = _WORKER["it"]
    return worker.ready() or worker.work(key, read_packed(Path(folder), key), chunk)


__all__ = ["Loky", "LokyWorkers"]
