"""The grammar of point names."""

from __future__ import annotations

import numpy as np
import pytest

from vlm_lens.errors import PointError
from vlm_lens.points.point import Point, expand_name
from vlm_lens.points.sites import AttentionSite, OutputSite
from vlm_lens.points.table import PointTable, expand_braces


@pytest.fixture
def table():
    site, square = OutputSite("m"), AttentionSite("m", "pattern")
    names = ["hook_embed", "vision.blocks.0.hook_resid_post"]
    points = [Point(n, ("batch", "pos", "d"), (None, None, 4), "doc", site) for n in names]
    for layer in range(12):
        block = f"blocks.{layer}."
        points.append(Point(f"{block}attn.hook_pattern", ("batch", "head", "query", "key"),
                            (None, 2, None, None), "doc", square))  # fmt: skip
        points.append(Point(f"{block}attn.hook_q", ("batch", "pos", "head", "d_head"),
                            (None, None, 2, 2), "doc", site))  # fmt: skip
        barred = "nothing reads it" if layer == 11 else ""
        points.append(Point(f"{block}hook_resid_post", ("batch", "pos", "d"), (None, None, 4),
                            "doc", site, read_only=barred))  # fmt: skip
    return PointTable(points, {"vision.*": "it is blind.", "blocks.*.ln2.*": "it has one norm."})


@pytest.mark.parametrize(
    ("short", "full"),
    [
        (("resid_post", 3), "blocks.3.hook_resid_post"),
        (("hook_resid_post", 3, "blocks"), "blocks.3.hook_resid_post"),
        (("q", 3), "blocks.3.attn.hook_q"),
        (("attn.q", 3), "blocks.3.attn.hook_q"),
        (("pattern", 0), "blocks.0.attn.hook_pattern"),
        (("attn_scores", 0), "blocks.0.attn.hook_attn_scores"),
        (("attn_out", 0), "blocks.0.hook_attn_out"),
        (("mlp_out", 0), "blocks.0.hook_mlp_out"),
        (("post", 1), "blocks.1.mlp.hook_post"),
        (("mlp_pre", 1), "blocks.1.mlp.hook_pre"),
        (("mlp.pre_linear", 1), "blocks.1.mlp.hook_pre_linear"),
        (("normalized2", 1), "blocks.1.ln2.hook_normalized"),
        (("ln1.normalized", 1), "blocks.1.ln1.hook_normalized"),
        (("vision.resid_post", 2), "vision.blocks.2.hook_resid_post"),
        (("vision.q", 2), "vision.blocks.2.attn.hook_q"),
        (("vision.attn.q", 2), "vision.blocks.2.attn.hook_q"),
        (("vision.ln1.normalized", 2), "vision.blocks.2.ln1.hook_normalized"),
        (("embed",), "hook_embed"),
        (("merged",), "hook_merged"),
        (("projector.out",), "projector.hook_out"),
        (("ln_final.normalized",), "ln_final.hook_normalized"),
        (("resid_post", "*"), "blocks.*.hook_resid_post"),
        ("anything", "anything"),
    ],
)
def test_short_forms(short, full):
    assert expand_name(short) == full


def test_kinds_are_short_forms(model):
    for name, point in model.points().items():
        short = (point.kind,) if point.layer is None else (point.kind, point.layer)
        assert expand_name(short) == name
        assert model.points(short)[short].name == name


def test_braces():
    assert expand_braces("a") == ["a"]
    assert expand_braces("b.{2..4}.x") == ["b.2.x", "b.3.x", "b.4.x"]
    assert expand_braces("{a, b}{1,2}") == ["a1", "a2", "b1", "b2"]


def test_match(table):
    assert table.match("hook_embed") == ["hook_embed"]
    assert table.match("blocks.1.*") == [
        "blocks.1.attn.hook_pattern", "blocks.1.attn.hook_q", "blocks.1.hook_resid_post",
    ]  # fmt: skip
    assert table.match("blocks.{10,2}.hook_resid_post") == [
        "blocks.2.hook_resid_post", "blocks.10.hook_resid_post",
    ]  # fmt: skip
    assert len(table.match("blocks.{0..11}.attn.hook_q")) == 12
    assert table.match([("q", 1), "hook_embed"]) == ["hook_embed", "blocks.1.attn.hook_q"]
    assert table.match(lambda n: n.endswith("hook_embed")) == ["hook_embed"]
    everything = table.match(None)
    assert len(everything) == len(table) - 12
    assert not any(n.endswith("pattern") for n in everything)
    assert len(table.match("*")) == len(table)
    assert table.match("blocks.*.hook_resid_post") == table.match(("resid_post", "*"))


def test_nothing_matches(table):
    with pytest.raises(PointError, match=r"Did you mean 'blocks\.\d+\.hook_resid_post'"):
        table.match("blocks.1.hook_resid_pst")
    with pytest.raises(PointError, match="There is no point 'blocks.12.hook_resid_post'"):
        table.match("blocks.{11..12}.hook_resid_post")
    with pytest.raises(PointError, match=r"No point matches 'block\.\*'"):
        table.match("block.*")
    with pytest.raises(PointError, match="selected none"):
        table.match(lambda n: False)
    with pytest.raises(PointError, match="it is blind"):
        table.match("vision.blocks.1.hook_resid_post")
    with pytest.raises(PointError, match="it has one norm"):
        table.match("blocks.*.ln2.hook_normalized")
    with pytest.raises(PointError, match="write a name, or"):
        table.match([("a", 1, "b", 2)])


def test_what_a_point_says(table):
    point = table["blocks.3.attn.hook_q"]
    assert (point.layer, point.kind, point.shape) == (3, "attn.q", "[batch, pos, 2, 2]")
    assert point.has_heads
    assert point.writable
    assert not point.on_demand
    assert table["blocks.3.attn.hook_pattern"].on_demand
    assert not table["blocks.11.hook_resid_post"].writable
    assert table["hook_embed"].layer is None
    assert table["vision.blocks.0.hook_resid_post"].kind == "vision.resid_post"


def test_as_a_table(table):
    rows = {r["point"]: r for r in table.rows()}
    assert rows["blocks.*.hook_resid_post"]["layers"] == "0..11"
    assert rows["blocks.*.hook_resid_post"]["writable"] == "not 11"
    assert rows["blocks.*.attn.hook_pattern"]["readable"] == "on demand"
    assert len(table.to_dataframe()) == len(rows) == 5
    assert "38 points in 5 groups" in repr(table)


def test_order_is_that_of_the_forward_pass(vlm, picture):
    order = []
    names = [n for n in vlm.points() if not n.endswith("hook_out") or "projector" in n]
    vlm.run_with_hooks(
        "Q:<image>\nA:", [picture], fwd_hooks=[(names, lambda x, hook: order.append(hook.name))]
    )
    assert order == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("blocks.{1..0}.hook_resid_post", r"counts down; write \{0..1\}"),
        ("blocks.{0..}.hook_resid_post", "between braces"),
        ("blocks.{}.hook_resid_post", "between braces"),
        ("blocks.{0,}.hook_resid_post", "between braces"),
        ("blocks.*.hook_residpost", r"Did you mean 'blocks.\*.hook_resid_post'"),
        ("vison.*", "No point matches"),
        ([], "empty list selects no point"),
    ],
)
def test_a_selection_of_nothing_is_said(clip, no_forward, names, message):
    no_forward(clip)
    for ask in (
        lambda: clip.points(names),
        lambda: clip.run_with_cache("Q:", names_filter=names),
        lambda: clip.run_with_hooks("Q:", fwd_hooks=[(names, print)]),
    ):
        with pytest.raises(PointError, match=message):
            ask()


def test_layers_as_numpy_counts_them(clip):
    assert clip.points().full_name(("resid_post", np.int64(-1))) == "blocks.1.hook_resid_post"
    assert clip.points().full_name(("resid_post", np.int32(0))) == "blocks.0.hook_resid_post"
