"""Where a path ends: the input of a head, of an MLP, or the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.integers import as_integer
from vlm_lens.keywords import Answering
from vlm_lens.layout.positions import All, Position, as_position
from vlm_lens.patching.donor import PatchingError, check_points
from vlm_lens.points.point import Point

LOGITS = "logits"
_INPUTS = ("attn.q", "attn.k", "attn.v", "ln2.normalized")


@dataclass(frozen=True)
class Receiver(Answering):
    """An input that a path ends at.

    Attributes:
        point: `"logits"`; or of one block `attn.hook_q`, `attn.hook_k` or `attn.hook_v` (what a
            head makes of the stream), or `ln2.hook_normalized` (what the MLP reads).
        head: Which query head; all of the block by default.
        at: Where the input is changed, named on the clean prompt.
    """

    point: str
    head: int | None = None
    at: Position = All()

    def __post_init__(self):
        object.__setattr__(self, "at", as_position(self.at))
        if self.head is not None:
            object.__setattr__(self, "head", as_integer(self.head, "A head", PatchingError))

    @property
    def label(self) -> str:
        """Its name on the axis of receivers."""
        head = "" if self.head is None else f" head {self.head}"
        return f"{self.point}{head}" + ("" if self.at == All() else f" at {self.at!r}")


def read_receivers(vlm: HookedModel, given: Any) -> tuple[Receiver, ...]:
    """Receivers of points that are inputs, with heads that there are.

    Raises:
        PatchingError: None was given, one twice, or what is no input.
        PointError: No such point or head.
    """
    several = [given] if isinstance(given, str | Receiver) else list(given)
    found: list[Receiver] = []
    table = vlm.architecture.points
    for one in several:
        receiver = one if isinstance(one, Receiver) else Receiver(one)
        if receiver.point == LOGITS:
            found.append(receiver)
            continue
        for name in table.match(receiver.point):
            point = table[name]
            if point.kind not in _INPUTS:
                raise PatchingError(
                    f"{name} is no receiver's input: name 'logits', attn.hook_q, attn.hook_k, "
                    "attn.hook_v or ln2.hook_normalized of a block."
                )
            if receiver.head is not None and point.kind == "ln2.normalized":
                raise PatchingError(f"{name} has no heads: leave head= out.")
            z = name if receiver.head is None else z_of(point)
            check_points(vlm, [z], None if receiver.head is None else (receiver.head,))
            found.append(Receiver(name, receiver.head, receiver.at))
    if not found or len(set(found)) < len(found):
        raise PatchingError(f"receivers={given!r} must name at least one, each once.")
    return tuple(found)


def z_of(point: Point) -> str:
    """The point of what the heads of a block give."""
    return f"blocks.{point.layer}.attn.hook_z"
