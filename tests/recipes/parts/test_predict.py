"""Batches and replay give what single full runs give."""

from __future__ import annotations

import pytest
import torch

from vlm_lens import ActivationPatch, Find, Last, Steer
from vlm_lens.recipes.parts.predict import first_tokens
from vlm_lens.tasks import Task


@pytest.fixture
def prompts():
    task = Task.load("country-capital")
    return [task.query(row, modality) for row in task.test[:4] for modality in ("image", "text")]


def test_equals_one_full_run_each(toy, prompts):
    generator = torch.Generator().manual_seed(0)
    value = 3 * torch.randn(toy.cfg.d_model, generator=generator)
    runs = [
        (),
        ActivationPatch("blocks.2.hook_resid_post", at=Last(), value=value),
        Steer("blocks.1.hook_resid_post", at=Find(":", -1), vector=value),
        ActivationPatch("blocks.0.hook_resid_post", at=Find(":", 0), value=value),
    ]
    got = first_tokens(toy, prompts, runs, batch_size=3)
    assert got.shape == (4, 8)
    for i, run in enumerate(runs):
        for j, prompt in enumerate(prompts):
            assert got[i, j] == toy.run(prompt, interventions=run)[0, -1].argmax()


def test_without_interventions_and_with_progress(toy, prompts):
    seen = []
    got = first_tokens(
        toy, prompts, batch_size=5, progress=lambda batches: (seen.append(b) or b for b in batches)
    )
    assert [batch.rows for batch in seen] == [(1, 3, 5, 7), (0, 2, 4, 6)] and got.shape == (1, 8)
