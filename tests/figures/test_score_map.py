from __future__ import annotations

import numpy as np
import pytest

from vlm_lens import VLMLensError
from vlm_lens.figures.score_map import score_map

RANDOM = np.random.default_rng(0)


def names(n):
    return [str(i) for i in range(n)]


def test_blocks_and_heads():
    values = RANDOM.random((2, 3))
    fig = score_map(values, {"layer": names(2), "head": names(3)}, name="attention")
    (heat,) = fig.data
    np.testing.assert_array_equal(heat.z, values.T)  # blocks to the right, heads downwards
    assert fig.layout.xaxis.title.text == "block (0-based)"
    assert fig.layout.yaxis.autorange == "reversed" and list(fig.layout.yaxis.ticktext) == names(3)
    assert list(heat.customdata[2][1]) == ["2", "1"]


def test_positions_run_to_the_right_and_further_axes_get_a_slider():
    values = RANDOM.random((2, 3, 4)) - 0.5
    axes = {"layer": names(2), "head": names(3), "position": ["0 'a'", "1 '<'", "2", "3"]}
    fig = score_map(values, axes, name="share", subtitle="query 3")
    assert len(fig.data) == 3 and [d.visible for d in fig.data] == [True, False, False]
    for head, heat in enumerate(fig.data):
        np.testing.assert_array_equal(heat.z, values[:, head])
    assert [s.label for s in fig.layout.sliders[0].steps] == ["0", "1", "2"]
    assert fig.layout.xaxis.ticktext[1] == "1 '&lt;'"
    assert fig.layout.coloraxis.cmin == -fig.layout.coloraxis.cmax


@pytest.mark.parametrize(
    ("axis", "kind"), [("layer", "scatter"), ("edges", "scatter"), ("kind", "bar")]
)
def test_one_axis_is_a_line_or_bars(axis, kind):
    fig = score_map(np.array([1.0, 2.0]), {axis: names(2)}, name="attention")
    assert fig.data[0].type == kind and list(fig.data[0].y) == [1.0, 2.0]


def test_too_many_settings_are_refused():
    axes = {"layer": names(15), "head": names(15), "query": names(20), "position": names(2)}
    with pytest.raises(VLMLensError, match="300 settings.*sum over an axis"):
        score_map(np.zeros((15, 15, 20, 2)), axes, name="attention")
