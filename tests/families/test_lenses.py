"""Lenses on every family: a Jacobian against finite differences, neighbours against cosines."""

from __future__ import annotations

import pytest
import tiny
import torch

from vlm_lens import All, LogitLens, Steer
from vlm_lens.lenses import EmbeddingLens, JacobianLens

pytestmark = pytest.mark.slow


def test_lenses_read_pictures_of_every_family(family):
    prompt = family.prompt("Q:<image>\nA:", [tiny.noise_picture(1, (64, 64))])
    first, *_, last = family.architecture.points.match("blocks.*.hook_resid_post")
    _, cache = family.run_with_cache(prompt, names_filter=first)
    states = cache[first][0].float()

    near = EmbeddingLens(first, k=1).run(family, prompt).rows[0]
    table = family.hf_model.get_input_embeddings()(torch.arange(family.cfg.d_vocab)).detach()
    cosine = torch.cosine_similarity(states[:, None], table[None].float(), dim=-1)
    exact = cosine.max(-1).values[list(near.positions)]
    torch.testing.assert_close(near.top_probs[0, :, 0], exact, rtol=1e-4, atol=1e-5)

    logits = family.run(prompt)[0, list(near.positions)]
    seen = LogitLens(last, k=1).run(family, prompt).rows[0]
    assert torch.equal(seen.top_ids[0, :, 0], logits.argmax(-1))

    # d (sum of all last states) / d (one direction added to all first ones) = positions x J u
    lens = JacobianLens.fit(family, prompt, points=first, progress=False)
    weight = lens.weights[f"{first}/all"].data.double()
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(family.cfg.d_model, generator=generator)
    size = 1e-3 * float(states.norm(dim=-1).mean()) / float(direction.norm())

    def moved(scale):
        edit = Steer(first, at=All(), vector=scale * direction)
        _, cache = family.run_with_cache(prompt, names_filter=last, interventions=edit)
        return cache[last][0].double().sum(0)

    slope = (moved(size) - moved(-size)) / (2 * size)
    mine = lens.about["sources"]["all"] * weight @ direction.double()
    assert (mine - slope).norm() < 0.03 * slope.norm()
