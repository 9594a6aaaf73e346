"""The same sweeps and readings in several processes: on this machine, or on a Ray cluster.

`vlm.sweep(..., on="ray")`, `on="loky"`, `on="ray://head:10001"`, and `on=Ray(num_gpus=1)`.
"""

from __future__ import annotations

from vlm_lens.distributed.choose import as_place, opened
from vlm_lens.distributed.on_loky import Loky
from vlm_lens.distributed.on_ray import Ray
from vlm_lens.distributed.refusal import DistributedError
from vlm_lens.distributed.workers import Here, Task, Workers

__all__ = ["DistributedError", "Here", "Loky", "Ray", "Task", "Workers", "as_place", "opened"]
