"""Models that tests of edges of attention share."""

from __future__ import annotations

import pytest
import tiny
from families.every import FAMILIES

from vlm_lens import HookedVLM

CHOSEN = ("qwen2_vl", "gemma3", "idefics2", "mllama", "paligemma", "internvl")


@pytest.fixture(scope="module", params=["clip-llama", *CHOSEN])
def pair(request, tmp_path_factory):
    """A model, and its copy with eager attention, on which plain masks are added."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    save = FAMILIES[name].save_to if name in FAMILIES else lambda f: tiny.save(name, f)
    save(folder)
    vlm = HookedVLM.from_pretrained(folder)
    return vlm, tiny.eager_copy(vlm.hf_model)
