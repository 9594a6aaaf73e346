"""What `on=` may be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vlm_lens.distributed.on_loky import Loky
from vlm_lens.distributed.on_ray import Ray
from vlm_lens.distributed.refusal import DistributedError
from vlm_lens.distributed.workers import Here, Workers
from vlm_lens.hooked.hooked_model import HookedModel


@contextmanager
def opened(on: Any, vlm: HookedModel) -> Iterator[Workers]:
    """The workers that `on=` means; those that were open before stay open.

    Args:
        on: None for this process; `"loky"`; `"ray"`, or a cluster's address; a `Loky` or `Ray` with
            settings; or workers that are open.
        vlm: The model that they get.

    Raises:
        DistributedError: It means none, or they cannot be had.
    """
    if isinstance(on, Workers):
        on.must_hold(vlm)
        yield on
        return
    if on is None:
        yield Here(vlm)
        return
    with as_place(on).open(vlm) as workers:
        yield workers


def as_place(on: Any) -> Loky | Ray:
    """The settings that `on=` means.

    Raises:
        DistributedError: It means none.
    """
    if isinstance(on, Loky | Ray):
        return on
    if on == "loky":
        return Loky()
    if on == "ray":
        return Ray()
    if isinstance(on, str) and ":" in on:
        return Ray(on)
    raise DistributedError(
        f"on= is 'loky', 'ray', the address of a Ray cluster ('ray://host:10001', 'host:6379'), a "
        f"Loky(...) or Ray(...) of vlm_lens.distributed, not {on!r:.80}."
    )


__all__ = ["as_place", "opened"]
