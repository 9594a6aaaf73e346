"""Attention sinks: positions that draw attention whatever is asked.

A few dimensions of the residual stream are huge at such positions. With D the dimensions that are
outlying at any position of the middle blocks, a position is a sink where

    max over d in D of |x_d| / rms(x)  >=  tau

(Kang et al. 2025, arXiv 2503.03321, for visual tokens; tau = 20). The tower has its own
("registers", Darcet et al. 2023, arXiv 2309.16588), found the same way in its own stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from vlm_lens.attention.parts import Part, part_of

if TYPE_CHECKING:
    import pandas as pd

    from vlm_lens.hooked.hooked_model import HookedModel, Pictures, Promptable
    from vlm_lens.layout.layout import Layout
    from vlm_lens.points.table import PointTable

TAU = 20.0


@dataclass(frozen=True)
class Sinks:
    """Positions that are sinks.

    Attributes:
        positions: The positions, in order.
        dimensions: The outlying dimensions of the stream.
        strength: Position -> the largest `|x_d| / rms(x)` over blocks and outlying dimensions.
        share: Position -> the share of the blocks looked at in which it is a sink.
        tau: From which strength on a position is one.
    """

    positions: tuple[int, ...] = ()
    dimensions: tuple[int, ...] = ()
    strength: dict[int, float] = field(default_factory=dict)
    share: dict[int, float] = field(default_factory=dict)
    tau: float = TAU

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each sink: position, strength, share of blocks."""
        import pandas as pd

        return pd.DataFrame(
            {
                "position": list(self.positions),
                "strength": [self.strength[p] for p in self.positions],
                "share of blocks": [self.share[p] for p in self.positions],
            }
        )


def find_sinks(
    vlm: HookedModel,
    prompt: Promptable,
    images: Pictures = None,
    *,
    part: str = "language",
    image: int = 0,
    tau: float = TAU,
) -> Sinks:
    """The attention sinks of a prompt of one row, or the registers of its tower.

    Args:
        vlm: The model.
        prompt: One prompt.
        images: Pictures, where `prompt` is text.
        part: `"language"` or `"vision"`.
        image: With `part="vision"`: in which picture's sequence.
        tau: From which `|x_d| / rms(x)` on a position is a sink.

    Raises:
        AttentionError: The model has no such part.
    """
    prompt = vlm.as_prompt(prompt, images)
    which = part_of(vlm, part)
    watch, layout = SinkWatch(which, tau), prompt.layout
    row = layout.row if which.queries == "text" else layout.image[image].vision.sequences[0][0]
    with vlm.hooks(watch.hooks(vlm.architecture.points)):
        vlm.run_with_cache(prompt, names_filter="hook_logits", last_logits=1)
    return watch.found(layout, row)


class SinkWatch:
    """Looks at the stream that enters each block of a run, and keeps what is outlying.

    Args:
        part: Whose blocks.
        tau: From which strength on an entry is outlying.
    """

    def __init__(self, part: Part, tau: float = TAU):
        self.part, self.tau = part, tau
        self._seen: dict[int, list[tuple[int, int, int, float]]] = {}  # row, position, dimension

    def hooks(self, points: PointTable) -> list[tuple[str, Callable]]:
        """The functions to run with: one for the stream before each block but the first."""
        names = [self.part.point(n, "hook_resid_pre") for n in self.part.layers[1:]]
        return [(name, self._look) for name in names if name in points]

    def _look(self, x: Tensor, hook) -> None:
        x = x.detach().float()
        ratio = x.abs() / x.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
        index = (ratio >= self.tau).nonzero()
        found = ratio[tuple(index.T)].tolist()
        self._seen[hook.layer()] = [
            (*cell, r) for cell, r in zip(index.tolist(), found, strict=True)
        ]

    def found(self, layout: Layout, row: int) -> Sinks:
        """What the run has shown of one row of the activations.

        Args:
            layout: The prompt's.
            row: The row.
        """
        n = len(self._seen)
        mine = [[(p, d, r) for at, p, d, r in seen if at == row] for seen in self._seen.values()]
        in_blocks = Counter(d for seen in mine for d in {d for _, d, _ in seen})
        dimensions = {d for d, count in in_blocks.items() if count >= max(1, n // 2)}
        strength: dict[int, float] = {}
        blocks: Counter[int] = Counter()
        for seen in mine:
            here = [(p, r) for p, d, r in seen if d in dimensions]
            for p, r in here:
                strength[p] = max(strength.get(p, 0.0), r)
            blocks.update({p for p, _ in here})
        padding = set(layout.of_kind("pad")) if self.part.queries == "text" else set()
        positions = sorted(set(strength) - padding)
        return Sinks(
            tuple(positions), tuple(sorted(dimensions)), {p: strength[p] for p in positions},
            {p: blocks[p] / n for p in positions}, self.tau,
        )  # fmt: skip
