"""What happens in a worker's process."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

import torch

from vlm_lens.distributed.packed import Packed, pack, unpack
from vlm_lens.distributed.refusal import DistributedError
from vlm_lens.errors import VLMLensError
from vlm_lens.storage.identity import library_versions

_LIBRARIES = ("torch", "transformers")


@dataclass(frozen=True)
class Failure:
    """An error on its way to the process that asked for the work."""

    error: Exception
    trace: str

    def throw(self) -> None:
        """Raises it."""
        if not isinstance(self.error, VLMLensError):
            self.error.add_note(f"In a worker:\n{self.trace}")
        raise self.error


class Worker:
    """A model, and the task at which it is.

    Args:
        source: How to get the model; see `vlm_lens.distributed.source`.
        n_threads: With how many threads torch computes.
        versions: Of the libraries where the model comes from.
    """

    def __init__(self, source: Packed, n_threads: int, versions: dict[str, str | None]):
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(n_threads)
        self._key, self._task, self._failure = "", None, None
        try:
            _check(versions)
            self._vlm = unpack(source).make()
        except Exception as error:
            self._failure = _packed_failure(error)

    def ready(self) -> Packed | None:
        """What went wrong with the model, if anything."""
        return self._failure

    def work(self, key: str, task: Packed, chunk: Packed) -> Packed:
        """A list of what a task yields for a chunk, or a `Failure`.

        Args:
            key: Tells the task from others.
            task: The task; read where it is another than the last time.
            chunk: The chunk.
        """
        try:
            if self._key != key:
                self._key, self._task = key, unpack(task)
            return pack(list(self._task(self._vlm, unpack(chunk))), "What was found")
        except Exception as error:
            return _packed_failure(error)


def versions() -> dict[str, str | None]:
    """Versions of the libraries on which numbers depend, in this process."""
    return library_versions(_LIBRARIES)


def _check(there: dict[str, str | None]) -> None:
    told = [f"{k} {there.get(k)} here, {v} there" for k, v in versions().items() if v != there[k]]
    if told:
        raise DistributedError(f"Workers have other versions: {', '.join(told)}.")


def _packed_failure(error: Exception) -> Packed:
    trace = "".join(traceback.format_exception(error))
    try:
        packed = pack(Failure(error, trace), "An error")
        unpack(packed)
    except Exception:  # errors with arguments of their own may not survive
        told = DistributedError(f"In a worker: {type(error).__name__}: {error}\n{trace}")
        return pack(Failure(told, trace), "An error")
    return packed


__all__ = ["Failure", "Worker", "versions"]
