"""Attributions as Scores that can be checked by exact patching."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from vlm_lens.attribution.refusal import AttributionError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.integers import as_integer
from vlm_lens.layout.position_map import PositionMap
from vlm_lens.measures.base import Measure
from vlm_lens.patching.exact import Direction, patch_spots
from vlm_lens.patching.patch import Plan
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.scores.scores import Scores

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Request:
    """What was attributed: the prompts and the places, as exact patching takes them."""

    clean: Prompt = field(repr=False)
    corrupt: Prompt = field(repr=False)
    plan: Plan = field(repr=False)
    measure: Measure
    positions: PositionMap = field(repr=False)
    direction: Direction
    features: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Scores):
    """Estimated shares; `check` patches the best of them exactly.

    Attributes:
        asked: What was attributed; `None` after it was read from a file.
        exact: After `check`: the nodes that were patched, `attributed` and `patched` shares.
    """

    asked: Request | None = field(default=None, repr=False)
    exact: pd.DataFrame | None = field(default=None, repr=False)

    def check(self, vlm: HookedModel, k: int | None = 20) -> Self:
        """Patches the nodes with the largest scores exactly, one forward each, replayed.

        Args:
            vlm: The model.
            k: How many; `None` for all.

        Returns:
            The same scores, which print the rank correlation (Spearman's, of the shares of these
            nodes) and the largest error; the table is in `exact`.

        Raises:
            AttributionError: These scores no longer know what was attributed (they were read from
                a file, summed or chosen from), or are of single features.
        """
        if self.asked is None or self.values.size != len(self.asked.plan):
            raise AttributionError(
                "Only attributions as they were made, of whole points or heads, can be checked: "
                "call check on what attribute(...) gave, before sel, sum or save."
            )
        flat = self.values.to_numpy().reshape(-1)
        most = len(flat) if k is None else min(as_integer(k, "k", AttributionError), len(flat))
        if most < 1:
            raise AttributionError(f"check patches at least 1 node, not {k}.")
        best = np.argsort(-np.abs(flat), kind="stable")[:most]
        asked = self.asked
        patched = patch_spots(
            vlm, asked.clean, asked.corrupt, [asked.plan.spots[i] for i in best],
            measure=asked.measure, positions=asked.positions, direction=asked.direction,
        ).share  # fmt: skip
        table = self.top(most, largest="magnitude").drop(columns=self.name)
        table["attributed"], table["patched"] = flat[best], patched
        about = {
            **self.about,
            "checked": f"{most} best by exact patching, {correlation(flat[best], patched)}, "
            f"largest error {np.abs(flat[best] - patched).max():.2g}",
        }
        return replace(self, about=about, exact=table)


def correlation(one: np.ndarray, two: np.ndarray) -> str:
    """Spearman's rank correlation, in words."""
    rho = rank_correlation(one, two)
    return "rank correlation " + ("undefined (all equal)" if np.isnan(rho) else f"{rho:.2f}")


def rank_correlation(one: np.ndarray, two: np.ndarray) -> float:
    """Spearman's rank correlation; values that differ by rounding alone count as equal.

    NaN where one side has a single value.
    """
    from scipy.stats import rankdata

    ranks = [rankdata(np.round(np.asarray(x, dtype=float), 6)) for x in (one, two)]
    if any(np.ptp(r) == 0 for r in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])
