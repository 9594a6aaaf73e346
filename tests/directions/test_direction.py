"""Directions against a closed form, their sign, their scale, and their use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import bench

from vlm_lens import At, Images, Last, RawPrompt, Remove, Steer
from vlm_lens.directions import Direction
from vlm_lens.directions.direction import _direction
from vlm_lens.errors import VectorError

POINT = "blocks.0.hook_resid_post"
POSITIVE = [f"Q:{a}{b}\nA:" for a in "abc" for b in "xyz"]
NEGATIVE = [f"Q:{a}{b}\nA:" for a in "def" for b in "xyz"]


def states(clip, texts, point=POINT, at=2):
    return np.stack(
        [clip.run_with_cache(t, names_filter=point)[1][point][0, at].numpy() for t in texts]
    ).astype(np.float64)


@pytest.mark.parametrize("method", ["mean", "pca", "logistic"])
def test_points_from_negative_to_positive(clip, method):
    found = Direction.fit(clip, POSITIVE, NEGATIVE, at=At(2), method=method)
    pos, neg = states(clip, POSITIVE), states(clip, NEGATIVE)
    v = found.layer(0).double().numpy()
    apart = pos.mean(0) - neg.mean(0)
    assert v @ apart > 0
    if method == "mean":
        np.testing.assert_allclose(v, apart, atol=1e-5)
    if method == "pca":
        x = pos - neg
        values, vectors = np.linalg.eigh(x.T @ x)
        u = vectors[:, -1]
        np.testing.assert_allclose(v, (u @ apart) * u, atol=1e-4)
    turned = Direction.fit(clip, NEGATIVE, POSITIVE, at=At(2), method=method)
    torch.testing.assert_close(turned.values, -found.values, atol=1e-4, rtol=1e-3)
    norms = np.linalg.norm(np.concatenate([pos, neg]), axis=1).mean()
    assert found.stream_norm[0] == pytest.approx(norms, rel=1e-5)
    assert all(0 <= auc <= 1 for auc in found.separation)


def test_separation_is_of_prompts_that_were_not_fitted_on(clip, tmp_path):
    """A direction tells any prompts apart that it was fitted on."""
    for n, holdout, tested in ((2, 0.25, False), (4, 0.0, False), (4, 0.1, True)):
        positive, negative = (
            [f"{word} {seed}" for seed in range(n)] for word in ("Q:red\nA:", "Q:green\nA:")
        )
        found = Direction.fit(clip, positive, negative, holdout=holdout)
        assert bool(found.separation) == tested and ("AUC" in repr(found)) == tested
        assert Direction.load(found.save(tmp_path / "direction")) == found
    part = Direction.fit(clip, positive[:-1], negative[:-1], holdout=0.0)
    ends = [
        clip.run_with_cache(text[-1], names_filter=POINT)[1][POINT][0, -1]
        for text in (positive, negative)
    ]
    along = [float(x @ part.layer(0)) for x in ends]
    assert found.separation[0] == float(along[0] > along[1])


def test_planted_direction_is_found_by_all():
    draw = torch.Generator().manual_seed(0)
    along = torch.nn.functional.normalize(torch.randn(20, generator=draw).double(), dim=0)
    noise = [torch.randn(200, 20, generator=draw).double() for _ in range(2)]
    pos, neg = noise[0] + along, noise[1] - along
    for method in ("mean", "pca", "logistic"):
        v = _direction(pos, neg, method)
        assert float(v @ along / v.norm()) > 0.9, method
        assert float(v.norm()) == pytest.approx(2.0, rel=0.15)


def test_lengths_are_told_in_units_of_the_stream(clip):
    found = Direction.fit(clip, POSITIVE, NEGATIVE, at=At(2))
    half = found.of_stream(0.5)
    torch.testing.assert_close(half.norm(), 0.5 * torch.tensor(found.stream_norm))
    torch.testing.assert_close(half.relative_norm, torch.full_like(half.norm(), 0.5))
    torch.testing.assert_close(found.unit().norm(), torch.ones(2))
    torch.testing.assert_close((-found).values, -found.values)
    assert "0.5 of the stream" in repr(half)


def test_used_as_a_value(clip, tmp_path):
    found = Direction.fit(clip, POSITIVE, NEGATIVE, at=At(2))
    again = Direction.load(found.save(tmp_path / "direction"))
    assert again == found and again.positive == tuple(POSITIVE)
    prompt = clip.prompt("Q:ax\nA:")
    got = clip.run(prompt, interventions=Steer(POINT, Last(), found, scale=2.0))
    want = clip.run(prompt, interventions=Steer(POINT, Last(), 2 * found.layer(0)))
    torch.testing.assert_close(got, want)
    edit = Remove(POINT, Last(), again)
    _, cache = clip.run_with_cache(prompt, names_filter=POINT, interventions=edit)
    assert abs(float(cache[POINT][0, -1] @ found.layer(0))) < 1e-4
    with pytest.raises(VectorError, match="allow_transfer"):
        found.value_at(
            clip.architecture.points[POINT],
            replace(clip.facts, weights="0" * 16, signs="1" * 16, unembed_hash="2" * 16),
        )


def test_pictures_set_apart(clip):
    pictures = [bench.noise((40, 40), seed=s).point(lambda v: v // 4) for s in range(4)]
    dark = [RawPrompt("Q:<image>\nA:", (p,)) for p in pictures]
    light = [RawPrompt("Q:<image>\nA:", (p.point(lambda v: 255 - v),)) for p in pictures]
    found = Direction.fit(clip, light, dark, at=Images())
    assert max(found.separation) == 1.0
    prompt = clip.as_prompt(light[0])
    along = found.scores(clip, prompt)
    assert along.axes == ("layer", "position")
    x = clip.run_with_cache(prompt, names_filter=POINT)[1][POINT][0]
    want = x @ (found.layer(0) / found.layer(0).norm())
    np.testing.assert_allclose(along.values.sel(layer=0), want, atol=1e-4)
    other = found.scores(clip, clip.as_prompt(dark[0]))
    means = [float(s.of_kind("image").mean("position").values.sel(layer=1)) for s in (along, other)]
    assert means[0] > means[1]


def test_what_makes_no_direction_is_refused(clip):
    with pytest.raises(VectorError, match="mean, pca, logistic"):
        Direction.fit(clip, POSITIVE, NEGATIVE, method="svm")
    with pytest.raises(VectorError, match="at least two"):
        Direction.fit(clip, POSITIVE[:1], NEGATIVE)
    with pytest.raises(VectorError, match="all from 0"):
        Direction.fit(clip, POSITIVE, NEGATIVE, points="blocks.1.hook_resid_post")
    with pytest.raises(VectorError, match="holdout"):
        Direction.fit(clip, POSITIVE, NEGATIVE, holdout=1.0)
