"""Tables of what was measured on pictures."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vlm_lens.recipes.parts.visual import tabulated


def test_what_is_measured_several_times_on_a_picture_counts_once():
    draw = np.random.default_rng(0)
    once = pd.DataFrame(
        {"task": np.repeat(["a", "b"], 20), "row": np.tile(range(20), 2),
         "heads": "chosen", "hit": draw.random(40).round()}
    )  # fmt: skip
    thrice = pd.concat([once.assign(head=i) for i in range(3)])
    want, got = (tabulated(rows, ["heads"], "hit", {}) for rows in (once, thrice))
    pd.testing.assert_frame_equal(got, want)
    assert got["task"].tolist() == ["a", "b", "mean"] and (got["high"] > got["low"]).all()


def test_the_interval_holds_the_mean_that_heads_of_one_picture_share():
    draw, held = np.random.default_rng(0), 0
    for _ in range(100):
        picture = draw.random(20) < 0.6
        hits = [np.where(draw.random(20) < 0.85, picture, draw.random(20) < 0.6) for _ in range(3)]
        rows = pd.DataFrame(
            {"task": "a", "row": np.tile(range(20), 3), "heads": "chosen",
             "hit": np.concatenate(hits).astype(float)}
        )  # fmt: skip
        (found,) = tabulated(rows, ["heads"], "hit", {}).itertuples()
        held += found.low <= 0.6 <= found.high
    assert held >= 88  # 95 by right; 80 where each head counts as a picture of its own
