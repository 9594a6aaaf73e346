"""Projecting away, against its formula."""

from __future__ import annotations

import pytest
import torch
from families import bench

from vlm_lens import Images, ProjectAway
from vlm_lens.errors import InterventionError

POINT = "blocks.0.hook_resid_post"


@pytest.mark.parametrize("gamma", [1.0, 0.4])
def test_only_what_points_along_it_goes(clip, gamma):
    prompt = clip.prompt("Q:<image>\nA:", [bench.noise((48, 40))])
    t = torch.randn(32, generator=torch.Generator().manual_seed(3)) * 5
    x = clip.run_with_cache(prompt, names_filter=POINT)[1][POINT]
    edit = ProjectAway(POINT, Images(), t, gamma)
    got = clip.run_with_cache(prompt, names_filter=POINT, interventions=edit)[1][POINT]
    want, signs = x.clone(), set()
    for p in prompt.layout.image[0].positions:
        along = float(x[0, p] @ t)
        signs.add(along > 0)
        if along > 0:
            want[0, p] = x[0, p] - gamma * along / float(t @ t) * t
    assert signs == {True, False}
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    found = clip.sweep(prompt, [edit], engine="replay", progress=False, measure="logits")
    logits = clip.run(prompt, interventions=edit)
    torch.testing.assert_close(found.records[0]["logits"][-1], logits[0, -1], atol=1e-4, rtol=1e-4)


def test_what_is_no_direction_is_refused(clip):
    prompt = clip.prompt("Q:<image>\nA:", [bench.noise((48, 40))])
    for wrong in (torch.zeros(32), torch.ones(2, 32), torch.ones(31)):
        with pytest.raises(InterventionError, match="one direction"):
            clip.run(prompt, interventions=ProjectAway(POINT, Images(), wrong))
