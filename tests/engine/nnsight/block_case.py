"""Blocks of a trace give the same here and in a service."""

from __future__ import annotations

import sys

import torch
from PIL import Image

from vlm_lens import Find, HookedVLM, Last, Scale

vlm = HookedVLM.from_pretrained(sys.argv[1])
pictures = [[Image.new("RGB", (40, 30), (200, 30, n))] for n in (5, 90)]
prompt = vlm.prompt(["Q:<image>\nA:", "Q: what? <image>A:"], pictures)
vector = torch.ones(vlm.cfg.d_model)
change = Scale("blocks.0.hook_mlp_out", Last(), 0.0)

with vlm.trace(prompt, interventions=change) as tr:
    tr["blocks.0.hook_resid_post"][tr.at(Find("A"))] += vector
    pattern = tr["pattern", -1].save()
    z = tr["blocks.1.attn.hook_z"].save()
    logits = tr.logits.save()
with vlm.trace(prompt, interventions=change, remote=True) as tr:
    tr["blocks.0.hook_resid_post"][tr.at(Find("A"))] += vector
    pattern_there = tr["pattern", -1].save()
    z_there = tr["blocks.1.attn.hook_z"].save()
    there = tr.logits.save()
    unsaved = there * 2
close = torch.testing.assert_close  # another process: the same numbers, but for the last bits
close(there, logits)
assert not torch.allclose(there, vlm.run(prompt))
close(z_there, z)
close(pattern_there, pattern)
assert "unsaved" not in globals()

with vlm.trace(prompt, remote=True) as tr:
    early = tr["projector.hook_out"].save()
    tr.stop()
_, cache = vlm.run_with_cache(prompt, names_filter="projector.hook_out")
close(early, cache["projector.hook_out"])

try:
    with vlm.trace(prompt, remote=True) as tr:
        tr["blocks.0.hook_resid_pots"].save()
except ValueError as error:
    assert "hook_resid_post" in str(error), error
else:
    raise AssertionError("a wrong name has passed")
