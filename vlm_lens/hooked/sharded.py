"""A model of which each process holds a slice of every weight, by transformers' `tp_plan`.

The processes of `torchrun` run the same prompts, and what enters and leaves a block is whole in
each. Within a block each process computes its own heads and neurons, so that their points hold a
part there, which is not the model's: they are refused.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace

from torch import nn

from vlm_lens.families import Architecture, Family
from vlm_lens.points.point import Point
from vlm_lens.points.table import PointTable
from vlm_lens.storage.weights import is_slice

_SLICED = {"head", "d_head", "d_mlp"}  # axes of which a process has a part
_REASON = (
    "the model is tensor-parallel, and each process has its own heads and neurons only. Load it "
    "without tp_plan (device_map= spreads layers over devices), or take a point between blocks."
)


def is_sharded(model: nn.Module) -> bool:
    """Whether weights are slices."""
    return any(is_slice(weight) for weight in model.parameters())


def as_sharded(
    model: nn.Module, family: Family, architecture: Architecture
) -> tuple[Family, Architecture]:
    """What can be asked of a model of slices: no point of heads or neurons, no replay.

    Args:
        model: The model.
        family: Its family.
        architecture: Its parts, as they are where it is whole.
    """
    inside = architecture.decoder.stack.path + "."
    spaces = {
        "text" if name.startswith(inside) else "vision"
        for name, weight in model.named_parameters()
        if is_slice(weight) and architecture.unembed not in name and "embed_tokens" not in name
    }

    def whole(point: Point) -> bool:
        space = "text" if point.space in ("text", "encoder") else "vision"
        return space not in spaces or not _SLICED & set(point.axes)

    points = architecture.points
    lost = {re.sub(r"\.\d+\.", ".*.", n): _REASON for n, p in points.items() if not whole(p)}
    table = PointTable([p for p in points.values() if whole(p)], {**points.missing, **lost})
    family = copy.copy(family)
    family.not_replayable = family.not_replayable or "the model is tensor-parallel"
    return family, replace(architecture, points=table)


__all__ = ["as_sharded", "is_sharded"]
