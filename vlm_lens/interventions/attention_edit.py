"""Attention edits: how much some queries read from some keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from vlm_lens.errors import InterventionError
from vlm_lens.interventions.base import Target
from vlm_lens.interventions.edges import AttentionEdges
from vlm_lens.interventions.values import freeze_number, number_of
from vlm_lens.layout.positions import Position
from vlm_lens.ops import SHARE, WEIGH, Op
from vlm_lens.serial import savable


@savable
@dataclass(frozen=True)
class AttentionEdit(AttentionEdges):
    """Sets or scales attention weights, in the pattern after softmax.

    With `p` a query's row of the pattern, `K` the keys and `Z` what makes it sum to 1 again:

        scale=s   p'[k] = s p[k] / Z   for k in K,   p[j] / Z   for the others
        value=v   p'[k] = v            for k in K,   p[j] (1 - |K| v) / (1 - p[K])   for the others

    The first is `log s` added to the scores before softmax; `scale=0` is `AttentionKnockout`. With
    `renormalise=False` the others keep `p[j]`, so that rows sum to another number than 1. A key
    that the query does not see (later ones, padding, outside a sliding window) is left out of `K`.

    Attributes:
        queries: Which positions look; `Last() + Generated()` for the last one and all new tokens.
        keys: At which positions of the same prompt (in the tower: picture).
        value: The weight that each of the keys gets.
        scale: What the weight of each key is multiplied by; one of the two is given. A tensor of
            one number where it is learned, and so `value`.
        layers: Which blocks; all by default.
        heads: Which heads (of the queries); all by default.
        part: `"language"`, `"vision"`, `"encoder"` or `"cross"`; see `AttentionKnockout`.
        renormalise: Whether rows sum to 1 again.
    """

    queries: Position
    keys: Position
    value: float | Any = None
    scale: float | Any = None
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    part: str = "language"
    renormalise: bool = True

    def __post_init__(self):
        super().__post_init__()
        if (self.value is None) == (self.scale is None):
            raise InterventionError("AttentionEdit takes value= or scale=, one of the two.")
        name = "scale" if self.value is None else "value"
        frozen = freeze_number(getattr(self, name), name)
        given = float(number_of(frozen).detach())
        most = 1 if name == "value" else math.inf
        if self.renormalise and not 0 <= given <= most:
            raise InterventionError(
                f"{name}={given} makes no row that sums to 1: give "
                + ("a weight from 0 to 1" if name == "value" else "a factor of 0 or more")
                + ", or renormalise=False."
            )
        object.__setattr__(self, name, frozen)

    def lower(self, target: Target) -> list[Op]:
        """One `share` op a block (without renormalising a `weigh` op), one more for new tokens.

        Raises:
            PointError: No such block or head, or no pattern that can be written.
            PositionError: No such position in one of the prompts.
            InterventionError: No query comes after one of the keys.
        """
        kind = SHARE if self.renormalise else WEIGH
        if self.value is None:
            given = {"times": number_of(self.scale).reshape(1, 1, 1)}
        else:
            given = {"to": number_of(self.value).reshape(1, 1, 1)}
        return list(self.edges(target, "hook_pattern", kind, **given))
