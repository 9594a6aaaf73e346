from __future__ import annotations

import plotly.graph_objects as go
import pytest
import torch

from vlm_lens import Ablate, At, AttentionKnockout, Find, Last, Prob, Text, VLMLensError
from vlm_lens.sweep import Grid, SweepResult, Variant

VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(0))
POINT = "blocks.*.hook_resid_post"


LONG = "Q:Oslo\nA:Is it in the north?\n"


def swept(vlm, variants, text="Q:Greece\nA:", **options):
    return vlm.sweep(vlm.prompt(text), variants, progress=False, **options)


def drawn(fig):
    """Traces that stand for records, not the legend's entry of the dotted line."""
    return [t for t in fig.data if t.hoverinfo != "skip"]


def test_one_label_is_a_line_against_the_layer(clip):
    result = swept(clip, Grid(POINT, at=Last(), vectors=VECTOR))
    fig = result.plot()
    (trace,) = drawn(fig)
    assert list(trace.x) == [0, 1] and trace.mode == "lines+markers"
    assert list(trace.y) == [r["prob"] for r in result.records]
    assert fig.layout.xaxis.title.text == "block (0-based)"
    assert fig.layout.yaxis.title.text == "prob"
    (line,) = fig.layout.shapes
    assert line.y0 == result.baseline[0]["prob"] and line.line.dash == "dot"
    token = result.records[1]["token"].replace("<", "&lt;")
    assert token in trace.customdata[1][1] and trace.customdata[1][0] == "1"


def test_a_line_for_each_position_vector_and_row(clip):
    grid = Grid(POINT, at={"end": Last(), "colon": Find(":", 0)}, vectors=VECTOR)
    result = swept(clip, grid)
    lines = drawn(result.plot())
    assert len(lines) == 2
    layout = clip.prompt("Q:Greece\nA:").layout
    assert result.positions["end"] == (len(layout) - 1, layout.strings[-1])
    assert set(result.positions) == {"end", "colon"}
    assert [line.name.split(":")[0] for line in lines] == ["position colon", "position end"]
    table = result.to_dataframe()
    for line, label in zip(lines, ("colon", "end"), strict=True):
        assert list(line.y) == list(table[table["at"] == label]["prob"])
    vectors = {"a": VECTOR, "b": -VECTOR}
    result = swept(clip, Grid(POINT, at=Last(), vectors=vectors), text=["A:", "Q:Peru\nA:"])
    fig = result.plot("prob")
    assert len(drawn(fig)) == 4 and len(fig.layout.shapes) == 2
    assert {line.name for line in drawn(fig)} == {f"{v}, row {r}" for v in "ab" for r in (0, 1)}


def test_a_label_that_repeats_another_is_no_axis(clip):
    cut = AttentionKnockout(Last(), Text())
    result = swept(clip, cut.each_window(1), measure=Prob("Greece"))
    assert {"layer", "layers"} <= set(result.to_dataframe().columns)
    (trace,) = drawn(result.plot())
    assert list(trace.x) == [0, 1] and list(trace.y) == [r["prob"] for r in result.records]
    named = [
        Variant(Ablate(POINT.replace("*", str(i)), at=Last()), {"layer": i, "name": name})
        for i in (0, 1)
        for name in "ab"
    ]
    assert [t.name for t in drawn(swept(clip, named).plot())] == ["name a", "name b"]


@pytest.mark.parametrize("what", ("position", "head"))
def test_two_labels_are_a_heatmap(clip, what):
    if what == "position":
        prompt = clip.prompt(LONG)
        grid = Grid(POINT, at=range(prompt.length), vectors=VECTOR)
    else:
        grid = [
            Variant(Ablate("blocks.*.attn.hook_z".replace("*", str(i)), Last(), heads=[0]),
                    {"layer": i, "head": h})
            for i in (0, 1) for h in range(8)
        ]  # fmt: skip
    result = swept(clip, grid, LONG)
    fig = result.plot()
    (trace,) = fig.data
    values = {(r["layer"], str(r[{"position": "at"}.get(what, what)])): r for r in result.records}
    assert sum(len(row) for row in trace.z) == len(result)
    for i, row in enumerate(trace.z):
        for j, value in enumerate(row):
            assert value == values[i, str(j)]["prob"]
    assert fig.layout.yaxis.title.text == "block (0-based)"
    title = {"position": "position (0-based) and token", "head": "head (0-based)"}[what]
    assert fig.layout.xaxis.title.text == title
    assert f"{result.baseline[0]['prob']:.3g}" in fig.layout.title.text
    if what == "position":
        layout = prompt.layout
        assert trace.customdata[0][2][1] == f"2 {layout.strings[2]}"


def test_a_column_that_is_no_probability_is_shown_whole(clip):
    """Though it is called one: a change of it lies below 0, too."""

    def change(logits):
        return {"prob change": float(logits.softmax(-1)[20]) - 0.5}

    points = ["blocks.*.hook_mlp_out", "blocks.*.hook_attn_out"]
    by_layer = swept(clip, [Ablate(points[0], Last()).each_layer()], measure=change)
    assert max(r["prob change"] for r in by_layer.records) < 0
    assert by_layer.plot().layout.yaxis.range is None
    at = {f"place {i}": At(i % 4) for i in range(6)}
    grid = swept(clip, Grid("blocks.*.hook_resid_post", at=at, vectors=VECTOR), measure=change)
    axis = grid.plot().layout.coloraxis
    assert axis.cmin == -axis.cmax == min(r["prob change"] for r in grid.records)
    assert axis.colorscale == go.Heatmap(colorscale="RdBu_r").colorscale


def test_a_third_label_makes_panels(clip):
    grid = Grid(POINT, at=range(6), vectors={"a": VECTOR, "b": -VECTOR})
    result = swept(clip, grid, LONG)
    fig = result.plot()
    assert len(fig.data) == 2
    table = result.to_dataframe()
    for trace, label in zip(fig.data, "ab", strict=True):
        mine = table[table["vector"] == label].sort_values(["layer", "at"])
        assert [v for row in trace.z for v in row] == list(mine["prob"])
    many = Grid(POINT, at=range(6), vectors={str(i): i * VECTOR for i in range(8)})
    with pytest.raises(VLMLensError, match="8 heatmaps"):
        swept(clip, many, LONG).plot()


def test_errors_say_what_can_be_plotted(clip):
    result = swept(clip, Grid(POINT, at=Last(), vectors=VECTOR))
    with pytest.raises(VLMLensError, match="no column 'probe'.*'prob'"):
        result.plot("probe")
    with pytest.raises(VLMLensError, match="'token' is no measured number"):
        result.plot("token")
    with pytest.raises(VLMLensError, match="no records"):
        SweepResult([], {}).plot()
    logits = swept(clip, Grid(POINT, at=Last(), vectors=VECTOR), measure="logits")
    with pytest.raises(VLMLensError, match="Nothing that was measured"):
        logits.plot()
    edit = Ablate("blocks.0.hook_mlp_out", Last())
    with pytest.raises(VLMLensError, match="same labels"):
        swept(clip, [edit, edit]).plot()
    assert len(drawn(swept(clip, [edit]).plot())) == 1
