"""Workers on a Ray cluster, or on a Ray of this machine.

The model is an object of Ray's store: on each machine it is there once, and workers on the CPU
compute with the weights where they lie. A worker is an actor, which computes one chunk at a time.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from vlm_lens.distributed.packed import Packed, pack, unpack
from vlm_lens.distributed.refusal import DistributedError
from vlm_lens.distributed.source import NamedModel, gpus_of, named, sent
from vlm_lens.distributed.worker import Failure, Worker, versions
from vlm_lens.distributed.workers import Job, OtherWorkers, Queue, Task
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.integers import as_integer

_REACHED = 3.0  # seconds in which an address answers
_PATIENCE = 60.0  # seconds after which it is looked at whether workers have a place
_INITS = 2  # more attempts at starting Ray on a machine so busy that it takes over 30 seconds
_SLOW = "timed out during startup"
_reached: dict[str, str | None] = {}  # as the address was given by which Ray was reached last
_STARTS = 3  # workers that may end, one after the other, before they are ready


@dataclass(frozen=True)
class Ray:
    """Workers of Ray: `on=Ray(num_gpus=1)`, or `on="ray"`.

    Without an address it is the Ray that this process is connected to, the cluster that
    `RAY_ADDRESS` or this machine has, or one of this machine that is started, and stays until the
    process ends.

    Attributes:
        address: Of a cluster: `"ray://host:10001"` from outside, `"host:6379"` from within.
        workers: How many; as many as the cluster has room for by default.
        num_cpus: Cores of a worker, which are torch's threads.
        num_gpus: GPUs of a worker, or its share of one; as many by default as the model lies on.
            A worker sees no others, and counts its own from 0.
        load: Whether workers load the model under the name by which it was loaded, which must be
            known on every machine, instead of getting its weights from here. For models that do
            not fit Ray's object store, quantised ones and those on several devices.
    """

    address: str | None = None
    workers: int | None = None
    num_cpus: float = 1
    num_gpus: float | None = None
    load: bool = False

    def __post_init__(self) -> None:
        if self.workers is not None and as_integer(self.workers, "workers", DistributedError) < 1:
            raise DistributedError(f"workers is at least 1, not {self.workers}.")
        if self.num_cpus <= 0 or (self.num_gpus or 0) < 0:
            raise DistributedError("A worker has more than 0 num_cpus, and 0 or more num_gpus.")
        if (gpus := self.num_gpus or 0) > 1 and gpus != int(gpus):
            raise DistributedError(
                f"num_gpus={gpus:g}: a worker has whole GPUs, or a share of one, 0.5 for example."
            )

    def open(self, vlm: HookedModel) -> RayWorkers:
        """The workers, with a model: a context manager, for several calls.

        Raises:
            DistributedError: Ray is not installed, not reached or without room for a worker, or
                the model cannot be sent.
        """
        connect(self.address)
        source = (named if self.load else sent)(vlm)
        gpus = self.num_gpus if self.num_gpus is not None else float(gpus_of(vlm))
        if isinstance(source, NamedModel) and source.n_gpus > max(1, gpus):
            raise DistributedError(
                f"The model was loaded with a device_map that names {source.n_gpus} GPUs, and a "
                f"worker has {gpus:g}: give Ray(num_gpus={source.n_gpus}, load=True)."
            )
        return RayWorkers(vlm, pack(source, "The model"), self.workers, self.num_cpus, gpus)


def connect(address: str | None) -> None:
    """Connects this process to a cluster, or starts one on this machine.

    Raises:
        DistributedError: Ray is not installed, or nothing answers at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise DistributedError(
            f"Ray cannot be imported ({error}): pip install 'vlm-lens[ray]'."
        ) from error
    if ray.is_initialized():
        there = ray.get_runtime_context().gcs_address
        if address not in (None, there, _reached.get("address")):
            raise DistributedError(
                f"This process is connected to the Ray at {there}, not to {address}: leave the "
                "address out, or call ray.shutdown() first."
            )
        return
    if address is not None:
        _check_answers(address)
    started = address is None and "RAY_ADDRESS" not in os.environ
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    for more in range(_INITS * started, -1, -1):
        try:
            ray.init(
                address=address, include_dashboard=False if started else None,
                log_to_driver=False, logging_level=logging.ERROR,
            )  # fmt: skip
            _reached["address"] = address
            return
        except Exception as error:  # ray raises its own, grpc's, OSError, RuntimeError, ...
            if more and _SLOW in str(error):
                continue
            raise DistributedError(
                f"Ray {f'at {address} ' * (address is not None)}cannot be used: "
                f"{type(error).__name__}: {str(error).strip()[:300]}"
            ) from error


def _check_answers(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise DistributedError(
            f"{address!r} is no address of a Ray cluster: it is 'ray://host:10001' from outside, "
            "'host:6379' from within."
        )
    try:
        socket.create_connection((host, int(port)), timeout=_REACHED).close()
    except (OSError, OverflowError) as error:
        raise DistributedError(
            f"No Ray cluster answers at {address} ({error}): is it up (ray start --head), and is "
            "the port right and open?"
        ) from error


class RayWorkers(OtherWorkers):
    """Actors that hold a model; see `Ray`.

    Args:
        vlm: The model.
        source: How workers get it.
        n: How many; as many as there is room for if None.
        num_cpus: Cores of each.
        num_gpus: GPUs of each.

    Raises:
        DistributedError: The cluster has no room for one.
    """

    def __init__(
        self, vlm: HookedModel, source: Packed, n: int | None, num_cpus: float, num_gpus: float
    ):
        import ray

        super().__init__(vlm)
        self._ray, self._threads = ray, max(1, int(num_cpus))
        self._asked = {"CPU": num_cpus, "GPU": num_gpus}
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = sum(map(self._room, machines))
        if room < 1:
            has = "; ".join(sorted(map(self._told, machines)))
            raise DistributedError(
                f"A worker asks for {num_cpus:g} CPU and {num_gpus:g} GPU; this Ray has {has}"
                f"{', each on another machine' * (len(machines) > 1)}."
            )
        self.n = n or room
        self._actor = ray.remote(Worker).options(num_cpus=num_cpus, num_gpus=num_gpus)
        self._source = self._put(source, "The model")
        self._starting: dict[Any, Any] = {}  # reference of its `ready` -> actor
        self._idle: list[Any] = []
        self._n_failed = 0
        self._had_room = False  # when a worker was asked for

    def run(self, task: Task, chunks: Iterable[Any]) -> Iterator[Any]:
        """What `task` yields for each chunk, in the order in which chunks are finished."""
        key, queue = token_hex(8), Queue(chunks)
        packed = self._put(self.packed(task), "The work")
        at_work: dict[Any, tuple[Any, Job]] = {}
        waiting = queue.next()
        try:
            while waiting or at_work:
                while waiting and self._idle:
                    actor = self._idle.pop()
                    at_work[actor.work.remote(key, packed, waiting.chunk)] = actor, waiting
                    waiting = queue.next()
                if waiting and len(self._starting) + len(at_work) < self.n:
                    self._start()
                    continue
                done, _ = self._ray.wait([*at_work, *self._starting], timeout=_PATIENCE)
                if not done and not at_work:
                    self._check_room()
                for reference in done:
                    if reference in self._starting:
                        self._started(reference)
                        continue
                    actor, job = at_work.pop(reference)
                    found = self._found(reference, actor, job, queue)
                    waiting = waiting or queue.next()
                    yield from found
        finally:
            for actor, _ in at_work.values():  # at work for nobody
                self._ray.kill(actor)

    def close(self) -> None:
        """Ends the workers; Ray stays."""
        for actor in (*self._idle, *self._starting.values()):
            self._ray.kill(actor)
        self._idle, self._starting, self._had_room = [], {}, False

    def _found(self, reference: Any, actor: Any, job: Job, queue: Queue) -> list[Any]:
        """What a chunk gave; nothing if its worker died, and then the chunk is put back."""
        try:
            found = unpack(self._ray.get(reference))
        except self._ray.exceptions.RayTaskError:
            self._ray.kill(actor)
            raise
        except self._ray.exceptions.RayError as error:
            self._ray.kill(actor)
            queue.put_back(job, error)
            return []
        self._idle.append(actor)
        if isinstance(found, Failure):
            found.throw()
        return found

    def _start(self) -> None:
        self._had_room |= self._room(self._ray.available_resources()) > 0
        actor = self._actor.remote(self._source, self._threads, versions())
        self._starting[actor.ready.remote()] = actor

    def _started(self, reference: Any) -> None:
        """Takes a new worker, or says why there is none."""
        actor = self._starting.pop(reference)
        try:
            failure = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._n_failed += 1
            if self._n_failed == _STARTS:
                raise DistributedError(
                    f"{_STARTS} workers in turn ended before they had the model: "
                    f"{str(error).strip()[-600:]}"
                ) from error
            return
        self._n_failed = 0
        if failure is not None:
            unpack(failure).throw()
        self._idle.append(actor)

    def _put(self, packed: Packed, what: str) -> Any:
        try:
            return self._ray.put(packed)
        except self._ray.exceptions.RayError as error:
            raise DistributedError(
                f"{what} ({packed.nbytes >> 20} MiB) does not fit Ray's object store "
                f"({type(error).__name__}): start Ray with a larger object_store_memory, or give "
                "Ray(load=True)."
            ) from error

    def _check_room(self) -> None:
        if self._had_room:
            return  # it is taken by workers of ours, which load torch and the model still
        free = self._ray.available_resources()
        if not self._room(free):
            raise DistributedError(
                f"For {_PATIENCE:.0f} seconds Ray has had no room for a worker of "
                f"{self._asked['CPU']:g} CPU and {self._asked['GPU']:g} GPU: free are "
                f"{self._told(free)}."
            )

    def _room(self, resources: dict[str, float]) -> int:
        shares = [resources.get(k, 0) / v for k, v in self._asked.items() if v]
        return int(min(shares) + 1e-6)  # 1 / 0.1 and the like are not quite whole

    def _told(self, resources: dict[str, float]) -> str:
        return f"{resources.get('CPU', 0):g} CPU and {resources.get('GPU', 0):g} GPU"


__all__ = ["Ray", "RayWorkers", "connect"]
