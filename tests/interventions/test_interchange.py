"""Interchange in a subspace, against its formula, and its gradient."""

from __future__ import annotations

import pytest
import torch

from vlm_lens import Interchange, Last
from vlm_lens.errors import InterventionError

POINT = "blocks.0.hook_resid_post"


def orthonormal(k, d=32, seed=0):
    x = torch.randn(d, k, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.linalg.qr(x).Q.T.float()


def test_the_part_in_the_subspace_is_the_sources(clip):
    base, source = clip.prompt("Q:ab\nA:"), clip.prompt("Q:cd\nA:")
    basis = orthonormal(5)
    _, theirs = clip.run_with_cache(source, names_filter=POINT)
    x = clip.run_with_cache(base, names_filter=POINT)[1][POINT]
    edit = Interchange(POINT, Last(), basis, theirs)
    got = clip.run_with_cache(base, names_filter=POINT, interventions=edit)[1][POINT]
    h, s = x[0, -1], theirs[POINT][0, -1]
    want = h + (s - h) @ basis.T @ basis
    torch.testing.assert_close(got[0, -1], want, atol=1e-5, rtol=1e-4)
    assert torch.equal(got[0, :-1], x[0, :-1])
    whole = Interchange(POINT, Last(), torch.eye(32), theirs)
    got = clip.run_with_cache(base, names_filter=POINT, interventions=whole)[1][POINT]
    torch.testing.assert_close(got[0, -1], s, atol=1e-5, rtol=1e-4)
    edits = [edit, Interchange(POINT, Last(), orthonormal(3, seed=2), theirs)]
    found = clip.sweep(base, edits, engine="replay", progress=False, measure="logits")
    for one, record in zip(edits, found.records, strict=True):
        logits = clip.run(base, interventions=one)
        torch.testing.assert_close(record["logits"][-1], logits[0, -1], atol=1e-4, rtol=1e-4)


def test_a_basis_is_learned(clip):
    base = clip.prompt("Q:ab\nA:")
    source = torch.randn(32, generator=torch.Generator().manual_seed(1))
    raw = torch.randn(32, 2, generator=torch.Generator().manual_seed(4), requires_grad=True)

    def value(raw):
        basis = torch.linalg.qr(raw).Q.T
        return clip.run(base, interventions=Interchange(POINT, Last(), basis, source), grad=True)[
            0, -1, 7
        ]

    value(raw).backward()
    for i, j in ((0, 0), (5, 1)):
        step = torch.zeros_like(raw)
        step[i, j] = 1e-2
        with torch.no_grad():
            slope = (value(raw + step) - value(raw - step)) / 2e-2
        assert float(raw.grad[i, j]) == pytest.approx(float(slope), rel=0.05, abs=1e-4)


def test_what_is_no_basis_is_refused(clip):
    base = clip.prompt("Q:ab\nA:")
    with pytest.raises(InterventionError, match="not orthonormal"):
        clip.run(base, interventions=Interchange(POINT, Last(), torch.ones(2, 32), torch.ones(32)))
    with pytest.raises(InterventionError, match="directions, 32"):
        clip.run(base, interventions=Interchange(POINT, Last(), torch.eye(16), torch.ones(32)))
