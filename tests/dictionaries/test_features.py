"""Features of a prompt as scores, over tokens and patches."""

from __future__ import annotations

import numpy as np
import pytest
from families import bench

from dictionaries import written
from vlm_lens import Images
from vlm_lens.dictionaries import Dictionary, DictionaryError, FeatureScores
from vlm_lens.scores import Scores

POINT = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def weights():
    return written.weights(d_in=32)


@pytest.fixture
def sae(weights, tmp_path) -> Dictionary:
    return Dictionary.from_pretrained(written.saelens(tmp_path, weights, "topk", k=written.K))


def test_scores_by_token_and_patch(clip, sae, weights, tmp_path):
    prompt = clip.prompt("Q:<image>\nA:", [bench.noise((48, 40))])
    x = clip.run_with_cache(prompt, names_filter=POINT)[1][POINT][0].numpy()
    want, _ = written.coded(weights, x, written.largest(written.K))
    found = sae.features(clip, prompt)
    assert found.axes == ("position", "feature")
    active = found.values["feature"].to_numpy()
    assert set(active) == set(np.flatnonzero(want.any(0)))
    np.testing.assert_allclose(found.values.to_numpy(), want[:, active], atol=1e-4)

    best = found.top(3)
    assert isinstance(best, FeatureScores)
    assert best.values["feature"].to_numpy().tolist() == np.argsort(-want.max(0))[:3].tolist()
    view = best.over_picture()
    assert "feature" in view.sliders
    table = found.entries(1)
    row, feature = np.unravel_index(want.argmax(), want.shape)
    assert table.loc[0, ["position", "feature"]].tolist() == [row, feature]
    one = found.sel(feature=int(feature))
    assert type(one) is Scores and one.top(1).loc[0, "position"] == row
    shown = repr(found).splitlines()
    assert shown[0] == f"Scores(activation: position {len(x)}, feature {len(active)})"
    assert len(shown) < 16 and str(feature) in shown[3]
    best.save(tmp_path / "kept")
    again = FeatureScores.load(tmp_path / "kept")
    assert again.values.equals(best.values)

    patches = sae.features(clip, prompt, at=Images(), features=[4, 2])
    assert patches.shape == (len(prompt.layout.image[0].positions), 2)
    kept = list(prompt.layout.image[0].positions)
    np.testing.assert_allclose(patches.values.to_numpy(), want[kept][:, [4, 2]], atol=1e-4)


def test_in_the_tower(clip, tmp_path):
    width = clip.cfg.vision.d_model
    w = written.weights(d_in=width)
    point = "vision.blocks.0.hook_resid_post"
    sae = Dictionary.from_pretrained(written.eleuther(tmp_path, w), point=point)
    prompt = clip.prompt("Q:<image>\nA:", [bench.noise((48, 40))])
    x = clip.run_with_cache(prompt, names_filter=point)[1][point][0].numpy()
    want, _ = written.coded(w, x, written.largest(written.K), centre=True)
    found = sae.features(clip, prompt, features=range(written.F))
    np.testing.assert_allclose(found.values.to_numpy(), want, atol=1e-4)
    assert found.top(2).over_picture().cells
    with pytest.raises(DictionaryError, match="shows no picture"):
        sae.features(clip, "Q:a")


def test_one_prompt_at_a_time(clip, sae):
    with pytest.raises(DictionaryError, match="2 rows"):
        sae.features(clip, clip.prompt(["Q:a", "Q:b"]))
