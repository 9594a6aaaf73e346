"""Shares of states that are read, on a lens whose words are known."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from vlm_lens import Find, Images, LogitLens
from vlm_lens.lenses import Lens, LensError, Reading, score_reading


@dataclass(frozen=True)
class Told(Lens):
    """Says the same words at all positions of a block."""

    words: dict = field(default_factory=dict, hash=False)  # point -> words

    def read(self, vlm, states, tokens):
        """The words of this block, in order."""
        ids = [vlm.to_first_token(word) for word in self.words[states.point]][: self.k]
        top = torch.tensor(ids).expand(len(states.values), -1)
        nothing = torch.zeros(len(states.values), 0)
        return Reading(top, torch.ones(top.shape), nothing, nothing.long())


@pytest.fixture
def known():
    return [
        ("Q:Greece\nA:Paris", Find("Paris"), ("paris",)),
        ("Q:Peru\nA:Tokyo", Find("Peru") + Find("Tokyo"), ("Tokyo",)),
    ]


def lens(first, second):
    return Told(words={"blocks.0.hook_resid_post": first, "blocks.1.hook_resid_post": second})


def test_shares_are_counts_over_positions(load, known):
    vlm = load("qwen2")
    lenses = {
        "a": lens(["Paris", "Lima"], ["Lima", "Athens"]),
        "b": lens(["Tokyo", "Lima"], ["Paris", "Tokyo"]),
    }
    found = score_reading(vlm, known, lenses, k=2, progress=False)
    table = found.table.set_index(["lens", "layer"])
    # one position whose word is Paris, two whose word is Tokyo; the other prompt's is the control
    for (name, layer), share, shuffled in (
        (("a", 0), 1 / 3, 2 / 3), (("a", 1), 0, 0), (("b", 0), 2 / 3, 1 / 3), (("b", 1), 1, 1),
    ):  # fmt: skip
        row = table.loc[(name, layer)]
        assert (row["share"], row["shuffled"]) == pytest.approx((share, shuffled))
        assert row["positions"] == 3
    assert found.best()["lens"].tolist() == ["b", "a"]
    one = score_reading(vlm, known, {"b": lens(["Paris", "Tokyo"], ["Paris"])}, k=1, progress=False)
    assert one.table["share"].tolist() == pytest.approx([1 / 3, 1 / 3])  # k cuts the second off
    fig = found.plot()
    assert [t.name for t in fig.data if t.showlegend] == ["a", "b"]
    assert tuple(fig.data[0].y) == pytest.approx((1 / 3, 0))
    assert "ReadingScore" in repr(found) and found._repr_html_()


def test_pictures_are_read_at_their_patches(clip, picture):
    known = [("Q:<image>\nA:", Images(), ("red",)), ("Q:<image>\nA:", Images(), ("green",))]
    prompts = [(clip.prompt(text, [picture]), at, words) for text, at, words in known]
    found = score_reading(clip, prompts, {"logit": LogitLens()}, progress=False)
    assert found.table["positions"].tolist() == [32, 32]


def test_what_cannot_be_scored_is_refused(clip, known):
    with pytest.raises(LensError, match="at least two prompts"):
        score_reading(clip, known[:1], {"logit": LogitLens()})
    with pytest.raises(LensError, match="no control"):
        score_reading(clip, [known[0], known[0]], {"logit": LogitLens()})
