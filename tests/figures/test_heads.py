from __future__ import annotations

import pandas as pd
import pytest

from vlm_lens.figures.heads import head_map


@pytest.mark.parametrize(("lowest", "scale"), [(-0.4, (-0.6, 0.6)), (0.1, (0, 0.6))])
def test_blocks_run_to_the_right_and_effects_below_zero_are_told_apart(lowest, scale):
    table = pd.DataFrame(
        {"layer": [1, 1, 3, 3], "head": [0, 1, 0, 1], "effect": [0.2, lowest, 0.3, 0.6]}
    )
    figure = head_map(table, "effect", table.iloc[[3]], title="heads", subtitle="")
    heat, marked = figure.data
    assert list(heat.x) == [1, 3] and list(heat.y) == [0, 1]
    assert heat.z.tolist() == [[0.2, 0.3], [lowest, 0.6]]
    assert (list(marked.x), list(marked.y)) == ([3], [1])
    axis = figure.layout.coloraxis
    assert (axis.cmin, axis.cmax) == scale
    assert figure.layout.yaxis.autorange == "reversed"
