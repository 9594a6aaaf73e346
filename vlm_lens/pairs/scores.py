"""Scores of many pairs, with what they say of the mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vlm_lens.scores.refusal import ScoresError
from vlm_lens.scores.scores import Scores
from vlm_lens.scores.statistics import bootstrap_interval, sign_flip_p

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from vlm_lens.figures.picture_view import PictureView

PAIR = "pair"
ROUNDING = 1e-5  # shares below it are no effect


class PairScores(Scores):
    """Scores with an axis `pair` in front: the same cells, measured on each pair.

    It prints the cells with the largest mean; `statistics()` gives all of them, and `mean("pair")`
    the means as Scores, which plot.
    """

    def statistics(
        self, *, level: float = 0.95, resamples: int = 2000, permutations: int = 10_000,
        seed: int = 0,
    ) -> pd.DataFrame:  # fmt: skip
        """Mean, interval and p-value of every cell, the largest means first.

        Args:
            level: Of the bootstrap interval over pairs.
            resamples: How often pairs are drawn for it.
            permutations: How many choices of signs are drawn where there are more than 12 pairs.
            seed: The seed of both.

        Shares below 1e-5 are rounding, and count as 0 for p. Each cell is of the pairs that have a
        score there, and left out where fewer than two have.

        Returns:
            A column for each axis; `mean`, `low` and `high`; `p`, of the sign-flip permutation test
            that the mean is zero, and `p_adjusted`, the same with the rate of false discoveries
            over all cells controlled (Benjamini and Hochberg 1995); `pairs`, how many have a score.

        Raises:
            ScoresError: There is no axis of pairs, or one pair only.
        """
        import pandas as pd
        from scipy.stats import false_discovery_control

        values = self._by_pair()
        there = (~np.isnan(values)).sum(0) > 1  # no path leads to a receiver before its sender
        values = values[:, there]
        low, high, p = np.empty((3, values.shape[1]))
        kinds, of = np.unique(np.isnan(values), axis=1, return_inverse=True)
        for i, lost in enumerate(kinds.T):  # cells that the same pairs have scores of
            cells = np.flatnonzero(of.reshape(-1) == i)
            mine = values[np.ix_(~lost, cells)]
            low[cells], high[cells] = bootstrap_interval(
                mine, level=level, resamples=resamples, seed=seed
            )
            real = np.where(np.abs(mine) < ROUNDING, 0, mine)
            p[cells] = sign_flip_p(real, permutations=permutations, seed=seed)
        mean = self.mean(PAIR)
        index = np.unravel_index(np.flatnonzero(there), mean.shape) if mean.shape else ()
        columns = {a: mean.values[a].to_numpy()[i] for a, i in zip(mean.axes, index, strict=True)}
        if "position" in mean.axes:
            places = [mean.places()[i] for i in index[mean.axes.index("position")]]
            columns["token"] = [place.label for place in places]
        table = pd.DataFrame(
            {**columns, "mean": np.nanmean(values, 0), "low": low, "high": high, "p": p,
             "p_adjusted": false_discovery_control(p), "pairs": (~np.isnan(values)).sum(0)}
        )  # fmt: skip
        order = np.argsort(-np.abs(table["mean"].to_numpy()), kind="stable")
        return table.iloc[order].reset_index(drop=True)

    def plot(self) -> go.Figure | PictureView:
        """The figure of the means over pairs."""
        return Scores.plot(self.mean(PAIR) if PAIR in self.axes else self)

    def _view(self, *, pictures: bool) -> PictureView:
        return Scores._view(self.mean(PAIR) if PAIR in self.axes else self, pictures=pictures)

    def _by_pair(self) -> np.ndarray:
        """`[pairs, cells]`, of the pairs that have scores."""
        self.needs(PAIR)
        values = self.values.transpose(PAIR, ...).to_numpy().reshape(len(self.values[PAIR]), -1)
        values = values[~np.isnan(values).all(1)]
        if len(values) < 2:
            raise ScoresError("Intervals and p-values need at least two pairs with scores.")
        return values

    def _largest(self) -> pd.DataFrame | None:
        """The ten cells with the largest mean."""
        if PAIR not in self.axes:
            return super()._largest()
        means = self.mean(PAIR)
        if len(self.values[PAIR]) < 2 or not means.shape:
            return means._largest()
        return self.statistics(resamples=500, permutations=1000).head(10)


__all__ = ["PAIR", "PairScores"]
