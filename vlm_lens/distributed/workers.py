"""Where the chunks of a long piece of work are computed.

```
chunks --Workers.run(task, chunks)--> what task(vlm, chunk) yields, as it is finished
           |
           Here: one after the other, in this process
           Loky, Ray: a few at a time, each process with the model and a copy of the task
```

A task is sent once to each process and stays there while its chunks run, so it may keep what they
have in common: the plain run of a sweep, for instance. What a chunk yields is handed out once,
whatever happens to the processes; chunks finish in any order, so what they yield says what it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from vlm_lens.distributed.packed import Packed, pack
from vlm_lens.distributed.refusal import DistributedError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.interventions.base import Composed
from vlm_lens.storage.weights import weights_state

Task = Callable[[HookedModel, Any], Iterable[Any]]  # model, chunk -> what is found

_TRIES = 3  # of a chunk whose worker dies


class Workers(ABC):
    """Processes that hold a model, a context manager.

    Attributes:
        n: How many chunks are computed at once, at the most.
    """

    n: int = 1

    @abstractmethod
    def run(self, task: Task, chunks: Iterable[Any]) -> Iterator[Any]:
        """What `task` yields for each chunk, in any order.

        Raises:
            VLMLensError: As the task raises it; or a chunk's process ended, three times.
        """

    def must_hold(self, vlm: HookedModel) -> None:  # noqa: B027  (a process of its own holds any)
        """Refuses a model that these workers do not hold.

        Raises:
            DistributedError: Another model, or one that was changed since they were started.
        """

    def close(self) -> None:  # noqa: B027  (there may be none)
        """Ends the processes."""

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


class Here(Workers):
    """This process: chunks one after the other, each thing handed out as it is found."""

    def __init__(self, vlm: HookedModel):
        self.vlm = vlm

    def run(self, task: Task, chunks: Iterable[Any]) -> Iterator[Any]:
        """What `task` yields, in order."""
        for chunk in chunks:
            yield from task(self.vlm, chunk)


class OtherWorkers(Workers):
    """Workers in processes of their own.

    Args:
        vlm: The model that they hold.
    """

    def __init__(self, vlm: HookedModel):
        self._vlm = vlm
        self._state = weights_state(vlm.hf_model)

    def must_hold(self, vlm: HookedModel) -> None:
        """Refuses a model that these workers do not hold."""
        if vlm.hf_model is not self._vlm.hf_model:
            raise DistributedError(
                f"These workers hold {self._vlm.name}, another model object: open others for this "
                "one."
            )
        if weights_state(vlm.hf_model) != self._state:
            raise DistributedError(
                "The model's weights were changed after these workers got theirs: open new ones."
            )

    def packed(self, task: Task) -> Packed:
        """A task with what is open around it here.

        Raises:
            DistributedError: It cannot be sent.
        """
        return pack(_Opened(task, _open_edits(self._vlm)), "The work, with its interventions,")


@dataclass(frozen=True)
class _Opened:
    """A task within the interventions that were open when it was sent."""

    task: Task
    edits: tuple[Composed, ...]

    def __call__(self, vlm: HookedModel, chunk: Any) -> Iterator[Any]:
        with ExitStack() as stack:
            for edit in self.edits:
                stack.enter_context(vlm.intervening(edit))
            yield from self.task(vlm, chunk)


def _open_edits(vlm: HookedModel) -> tuple[Composed, ...]:
    for one in vlm._active:
        if not isinstance(one, Composed):
            raise DistributedError(
                "Functions are open around this work, with vlm.hooks(...): other processes would "
                "call copies of them. Close them, or leave on= out."
            )
    return vlm._active  # type: ignore[return-value]


@dataclass
class Job:
    """A chunk on its way.

    Attributes:
        chunk: The chunk, packed.
        tries: How many workers have died over it.
    """

    chunk: Packed
    tries: int = 0


class Queue:
    """Chunks that wait; those of workers that died come first.

    Args:
        chunks: The chunks, taken as they are needed.
    """

    def __init__(self, chunks: Iterable[Any]):
        self._chunks, self._again = iter(chunks), deque[Job]()

    def next(self) -> Job | None:
        """A chunk to compute, if any is left."""
        if self._again:
            return self._again.popleft()
        for chunk in self._chunks:
            return Job(pack(chunk, "A chunk of the work"))
        return None

    def put_back(self, job: Job, why: object) -> None:
        """Has a chunk computed again.

        Raises:
            DistributedError: Three workers have died over it.
        """
        job.tries += 1
        if job.tries == _TRIES:
            raise DistributedError(
                f"{_TRIES} workers in turn ended without a word while they computed the same "
                f"chunk ({str(why).strip().splitlines()[0]}): most likely they need more memory "
                "than there is. Give fewer workers, or a smaller memory= or batch_size=."
            )
        self._again.append(job)


__all__ = ["Here", "Job", "OtherWorkers", "Queue", "Task", "Workers"]
