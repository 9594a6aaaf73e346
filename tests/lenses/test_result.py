"""What a lens found as numbers on coordinates."""

from __future__ import annotations

import pytest
import torch

from vlm_lens import LogitLens, Scores
from vlm_lens.errors import PositionError
from vlm_lens.scores.refusal import ScoresError


@pytest.fixture
def asked(clip, picture):
    return clip.prompt("Q:<image>\nA:", [picture])


def test_entropy_and_kl_are_those_of_the_whole_distribution(clip, asked):
    seen = LogitLens(k=3).run(clip, asked)
    _, cache = clip.run_with_cache(asked, names_filter="blocks.0.hook_resid_post")
    lens = clip.unembed(clip.ln_final(cache["blocks.0.hook_resid_post"]))[0].double()
    own = clip.run(asked)[0].double()
    mine, final = torch.distributions.Categorical(logits=lens), torch.distributions.Categorical(
        logits=own
    )  # fmt: skip
    row = seen.rows[0]
    torch.testing.assert_close(row.entropy[0].double(), mine.entropy(), rtol=1e-4, atol=1e-4)
    expected = torch.distributions.kl_divergence(final, mine)
    torch.testing.assert_close(row.kl[0].double(), expected, rtol=1e-4, atol=1e-4)
    assert row.kl[-1].abs().max() < 1e-4


def test_scores_are_the_numbers_by_layer_and_position(clip, asked, tmp_path):
    seen = LogitLens(k=2, tokens=(7, 30), embedding=True).run(clip, asked)
    row = seen.rows[0]
    top = seen.scores()
    assert top.axes == ("layer", "position")
    assert top.values["layer"].to_numpy().tolist() == ["embed", 0, 1]
    assert torch.equal(torch.tensor(top.sel(layer=0).values.to_numpy()), row.top_probs[1, :, 0])
    ranks = seen.scores("rank")
    assert ranks.axes == ("layer", "position", "token")
    assert torch.equal(torch.tensor(ranks.values.to_numpy()), row.token_ranks)
    for name in ("entropy", "kl"):
        assert torch.equal(torch.tensor(seen.scores(name).values.to_numpy()), getattr(row, name))
    top.save(tmp_path)
    again = Scores.load(tmp_path).sel(layer="embed")
    assert again.values.equals(top.sel(layer="embed").values)
    assert top.over_picture(layer=1)._repr_html_() and top.over_tokens(layer=1)._repr_html_()
    assert LogitLens(tokens=7).run(clip, asked).scores("token").axes == ("layer", "position")


def test_what_a_result_does_not_have_is_refused(clip, asked):
    seen = LogitLens(k=1).run(clip, asked)
    with pytest.raises(ScoresError, match="No token was chosen"):
        seen.scores("token")
    with pytest.raises(ScoresError, match="of is one of 'top'"):
        seen.scores("best")
    with pytest.raises(PositionError, match="row 3"):
        seen.scores(row=3)


def test_blocks_of_positions_change_nothing(clip, asked, monkeypatch):
    """What does not fit into memory at once is read in parts."""
    from vlm_lens.lenses import EmbeddingLens, base

    for lens in (LogitLens(k=3, tokens=(7,)), EmbeddingLens(k=3, tokens=(7,))):
        whole = lens.run(clip, asked).rows[0]
        with monkeypatch.context() as patched:
            patched.setattr(base, "_CELLS", 4 * clip.cfg.d_vocab)
            parts = lens.run(clip, asked).rows[0]
        assert torch.equal(parts.top_ids, whole.top_ids)
        assert torch.equal(parts.token_ranks, whole.token_ranks)
        for name in ("top_probs", "token_probs", "entropy", "kl"):
            mine, theirs = getattr(parts, name), getattr(whole, name)
            if theirs is not None:
                torch.testing.assert_close(mine, theirs)
