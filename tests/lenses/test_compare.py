"""Several lenses on the same patches: each as it is alone."""

from __future__ import annotations

import pytest
import torch

from vlm_lens import Images, LogitLens
from vlm_lens.errors import PositionError
from vlm_lens.lenses import EmbeddingLens, LensError, compare_lenses

LENSES = {"the logit lens": LogitLens(), "<b>near</b>": EmbeddingLens(), "again": LogitLens(k=2)}


@pytest.fixture
def asked(clip, picture):
    return clip.prompt("Q:<image>\nA:", [picture])


@pytest.fixture
def found(clip, asked):
    return compare_lenses(clip, asked, LENSES, at=Images(), k=3)


def test_each_lens_reads_what_it_reads_alone(clip, asked, found):
    for name, lens in (("the logit lens", LogitLens), ("<b>near</b>", EmbeddingLens)):
        alone = lens(at=Images(), k=3).run(clip, asked).rows[0]
        assert torch.equal(found[name].rows[0].top_ids, alone.top_ids)
        assert torch.equal(found[name].rows[0].top_probs, alone.top_probs)
    table = found.to_dataframe()
    assert list(dict.fromkeys(table["lens"])) == list(LENSES)
    assert set(table.groupby("lens").size()) == {2 * 16 * 3}


def test_pictures_stand_side_by_side_and_one_slider_sets_the_layer(found):
    fig = found.plot_image()
    assert len(fig.data) == 3 * 2 and len(fig.layout.images) == 3
    for layer, step in enumerate(fig.layout.sliders[0].steps):
        shown = [t for t, on in zip(fig.data, step.args[0]["visible"], strict=True) if on]
        assert len(shown) == 3 and len({t.xaxis for t in shown}) == 3
        for trace, (name, result) in zip(shown, found.results.items(), strict=True):
            assert trace.name == name
            tops = [result.top(layer, i)[0][1] for i in range(16)]
            cells = [v for line in trace.z[1::2] for v in line]
            assert cells == pytest.approx(tops)
    assert [t.visible for t in fig.data] == [False, True] * 3  # the last layer at first
    titles = [a.text for a in fig.layout.annotations]
    assert "&lt;b&gt;near&lt;/b&gt;" in titles
    bars = {fig.layout.coloraxis.colorbar.title.text, fig.layout.coloraxis2.colorbar.title.text}
    assert bars == {"probability", "cosine similarity"}
    used = {trace.name: trace.coloraxis for trace in fig.data}
    assert used["<b>near</b>"] == "coloraxis2" and used["again"] == "coloraxis"


def test_what_cannot_be_compared_is_refused(clip, asked, found, no_forward):
    with pytest.raises(PositionError):
        found.plot_image(3)
    no_forward(clip)
    for lenses, message in (
        ({}, "at least one lens"),
        ([LogitLens(), LogitLens(k=2)], "by name"),
        ([LogitLens(embedding=True), EmbeddingLens()], "LogitLens at 3 points"),
    ):
        with pytest.raises(LensError, match=message):
            compare_lenses(clip, asked, lenses)
