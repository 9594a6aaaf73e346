"""Which paths are patched: senders by receivers, and what is held between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.layout.position_map import PositionMap
from vlm_lens.patching.donor import PatchingError
from vlm_lens.patching.exact import Resolver
from vlm_lens.patching.patch import At, Heads, Plan, plan_patches
from vlm_lens.patching.receivers import LOGITS, Receiver, read_receivers
from vlm_lens.points.table import NamesFilter

Freeze = Literal["attention", "all"]
_SENDERS = ("attn.z", "attn_out", "mlp_out", "merged")


@dataclass(frozen=True)
class PathPlan(Plan):
    """Which paths are asked for: every spot is a sender, and the last axis the receivers.

    Attributes:
        ends: The receivers.
        freeze: What is held behind the sender.
    """

    ends: tuple[Receiver, ...]
    freeze: Freeze


def plan_paths(
    vlm: HookedModel,
    positions: PositionMap,
    senders: NamesFilter,
    *,
    receivers: Receiver | str | Sequence[Receiver | str] = LOGITS,
    freeze: Freeze,
    heads: Heads = None,
    at: At = None,
) -> PathPlan:
    """The paths that `patch_paths` is asked for, on their axes.

    Raises:
        VLMLensError: They do not fit the model or the prompts.
    """
    if freeze not in get_args(Freeze):
        raise PatchingError(f"freeze is 'attention' or 'all' (with MLPs), not {freeze!r}.")
    plan = plan_patches(vlm, positions, senders, at=at, heads=heads)
    ends = read_receivers(vlm, receivers)
    resolver = Resolver(vlm, positions, swap=False)
    for spot in plan.spots:
        point = vlm.architecture.points[spot.points[0]]
        if point.kind not in _SENDERS:
            raise PatchingError(
                f"{point.name} is no sender: name attn.hook_z, hook_attn_out, hook_mlp_out or "
                "hook_merged."
            )
        resolver.cells(spot)
    for end in ends:
        positions.resolve(end.at)
    several = {"receiver": tuple(end.label for end in ends)} if len(ends) > 1 else {}
    about = {
        "senders": plan.about["points"],
        **{k: v for k, v in plan.about.items() if k != "points"},
        **({} if several else {"receiver": ends[0].label}),
        "frozen": "attention" if freeze == "attention" else "attention and MLPs",
    }
    return PathPlan(
        plan.points,
        plan.heads,
        plan.places,
        {**plan.axes, **several},
        plan.rows,
        plan.space,
        about,
        ends,
        freeze,
    )
