"""Where a module computes: a model's modules may lie on several devices, or be fetched to one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def device_of(module: Any) -> torch.device | None:
    """The device on which a module computes; `None` where nothing says so.

    Weights that accelerate keeps on the CPU or on disk are on the meta device between two calls;
    the hook that fetches them says where to.
    """
    if not isinstance(module, nn.Module):
        return None
    device = next((p.device for p in module.parameters()), None)
    if device is None or device.type != "meta":
        return device
    where = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return None if where is None else torch.device(where)


def devices_of(model: Any) -> set[torch.device]:
    """The devices on which a model computes."""
    found = {p.device for p in model.parameters()} - {torch.device("meta")}
    embedding = device_of(model.get_input_embeddings())
    return found if embedding is None else found | {embedding}


def called(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What a module makes of a tensor, on the tensor's device, wherever the module computes."""
    device = device_of(module)
    return module(x) if device is None else module(x.to(device)).to(x.device)


def together(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Tensors of several layers on the device of the first, so that they can be joined."""
    found = list(tensors)
    return [x.to(found[0].device) for x in found]
