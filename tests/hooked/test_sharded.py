"""A model of slices in two processes: what is whole equals one process, the rest is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import tiny

_EACH = """
import sys
import pytest, tiny, torch
import torch.distributed as dist
from vlm_lens import (
    ActivationPatch, AttentionKnockout, HookedVLM, Images, Last, LogitLens, Steer, TaskVector,
    VLMLensError,
)

torch.set_num_threads(1)
plain = HookedVLM.from_pretrained(sys.argv[1])
vlm = HookedVLM.from_pretrained(sys.argv[1], tp_plan="auto")
weight = vlm.hf_model.model.language_model.layers[0].self_attn.q_proj.weight
assert weight.to_local().shape[0] * 2 == weight.shape[0]  # it is a slice
close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
picture = tiny.noise_picture(1)
ours, theirs = (v.prompt("Q:<image>\\nA:", [picture]) for v in (vlm, plain))

logits, cache = vlm.run_with_cache(ours, names_filter="*")
expected, others = plain.run_with_cache(theirs, names_filter="*")
close(logits, expected)
for name, value in cache.items():
    close(value, others[name])
kinds = {p.kind for p in vlm.points().values()}
assert {"resid_post", "attn_out", "mlp_out", "vision.attn.z", "logits"} <= kinds
assert set(others) - set(cache) == {
    n for n, p in plain.points().items()
    if p.space == "text" and {"head", "d_mlp"} & set(p.axes)
}
for name in ("blocks.0.attn.hook_z", "blocks.1.attn.hook_pattern", "blocks.0.mlp.hook_post"):
    with pytest.raises(VLMLensError, match="tensor-parallel, and each process has its own heads"):
        vlm.run_with_cache(ours, names_filter=name)
with pytest.raises(VLMLensError, match="tensor-parallel"):
    vlm.run(ours, interventions=AttentionKnockout(Last(), keys=Images()))

vector = torch.linspace(-1, 1, plain.cfg.d_model)
edits = [
    ActivationPatch("blocks.1.hook_resid_post", at=Last(), value=vector),
    Steer("blocks.0.hook_attn_out", at=Last(), vector=vector),
    ActivationPatch("blocks.0.hook_mlp_out", at=Last(), value=vector),
    ActivationPatch("projector.hook_out", at=Images(), value=vector),
]
for edit in edits:
    close(vlm.run(ours, interventions=edit), plain.run(theirs, interventions=edit))
    tokens = [
        v.generate(p, max_new_tokens=3, interventions=edit).tokens
        for v, p in ((vlm, ours), (plain, theirs))
    ]
    assert torch.equal(*tokens)
swept = vlm.sweep(ours, edits, measure="logits", progress=False)
whole = plain.sweep(theirs, edits, measure="logits", progress=False)
close(swept.stack("logits"), whole.stack("logits"))
assert swept.engines == {"full": 4} and set(swept.reasons) == {"the model is tensor-parallel"}
read = [TaskVector.read(v, ["Q:Peru\\nA:", "A:"], at=Last()) for v in (vlm, plain)]
close(read[0].values, read[1].values)
close(vlm.unembed(vlm.ln_final(vector)), plain.unembed(plain.ln_final(vector)))
for name in ("W_U", "W_E"):  # gathered; what each process has of heads is refused
    assert type(getattr(vlm, name)) is torch.Tensor
    close(getattr(vlm, name), getattr(plain, name))
for name in ("W_Q", "W_K", "W_V", "W_O"):
    with pytest.raises(VLMLensError, match="tensor-parallel, and each process has its own heads"):
        getattr(vlm, name)[0]
parts = [v.decompose(p, at=Last(), token=7).values for v, p in ((vlm, ours), (plain, theirs))]
assert abs(float(parts[0].sum()) - float(parts[1].sum())) < 1e-3  # blocks there, heads here
with pytest.raises(VLMLensError, match="tensor-parallel"):
    vlm.attention(ours, at=Last())
lens = [LogitLens().run(v, p).rows[0].top_ids for v, p in ((vlm, ours), (plain, theirs))]
assert torch.equal(*lens)
assert vlm.facts.weights is None and vlm.facts.unembed_hash is None
if dist.get_rank() == 0:
    print("all equal")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    folder = tiny.save("clip-llama", tmp_path / "model")
    script = tmp_path / "each.py"
    script.write_text(_EACH)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
               "2", str(script), str(folder)]  # fmt: skip
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "all equal" in done.stdout, done.stderr[-4000:]
