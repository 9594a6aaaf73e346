"""Replay equals the full forward on every family, or the family says why it cannot be."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from differential import compare, random_intervention, random_prompt

from vlm_lens import HookedVLM
from vlm_lens.engine.baseline import NotReplayable

BUILDERS = {
    path.stem.removeprefix("tiny_"): importlib.import_module(f"families.{path.stem}")
    for path in sorted(Path(__file__).parent.glob("tiny_*.py"))
    if path.stem not in ("tiny_parts", "tiny_words")
}
N_SEEDS = 10


@pytest.fixture(scope="module", params=BUILDERS)
def family(request, tmp_path_factory) -> Iterator[HookedVLM]:
    folder = BUILDERS[request.param].save(tmp_path_factory.mktemp(request.param))
    yield HookedVLM.from_pretrained(folder)


def test_replay_equals_full_forward(family):
    reason = family.family.not_replayable
    for seed in range(2 if reason else N_SEEDS):
        assert compare(family, seed, pictures=True) == (0 if reason else 8), seed
    if reason:
        source = random.Random(0)
        prompt = random_prompt(family, source, pictures=True)
        edit = random_intervention(family, prompt, source)
        result = family.sweep(prompt, [edit], progress=False)
        assert result.engines == {"full": 1} and result.reasons == {reason: 1}
        with pytest.raises(NotReplayable, match=reason[:20]):
            family.sweep(prompt, [edit], engine="replay", progress=False)
