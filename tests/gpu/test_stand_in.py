"""The stand-in refuses what CUDA refuses; and all tests of this folder pass on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu import stand_in

HERE = Path(__file__).parent
SPREAD = f"{stand_in.NAME}:0,{stand_in.NAME}:1"
QUICK = "llava-clip or (test_methods and not qwen2_vl and not idefics2)"

needed = pytest.mark.skipif(not stand_in.available, reason="torch has no backends in Python")


def in_a_process_of_its_own(*command: str, device: str = stand_in.NAME) -> str:
    """What a program prints; the stand-in, once known to torch, stays for the process's life."""
    environment = {**os.environ, "VLM_LENS_DEVICE": device}
    done = subprocess.run(
        [sys.executable, *command], cwd=HERE.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


REFUSALS = """
import pytest, torch
from gpu import stand_in

device = stand_in.device()
x = torch.arange(6.0, device=device).view(2, 3)
near = torch.ones(3)
for wrong in (
    lambda: x + near, lambda: x @ near, lambda: torch.cat([x, near[None]]),
    lambda: near[torch.tensor([0], device=device)], lambda: x.index_select(0, torch.tensor([0])),
    lambda: x.numpy(), lambda: x.masked_fill(torch.tensor([True, False, True]), 0.0),
    lambda: x.__setitem__(torch.tensor([0]), near), lambda: torch.where(x > 0, x, near),
):
    with pytest.raises((RuntimeError, TypeError)):
        wrong()
assert torch.equal((x + torch.tensor(2.0)).cpu(), torch.arange(6.0).view(2, 3) + 2)
assert x[torch.tensor([1])].tolist() == [[3, 4, 5]]  # CUDA takes a CPU's index
x[0, [0, 2]] = 9
assert x.tolist() == [[9, 1, 9], [3, 4, 5]]
weight = torch.nn.Linear(3, 3)
tied = torch.nn.ModuleList([weight, torch.nn.Linear(3, 3)])
tied[1].weight = weight.weight
tied.to(device)
assert tied[1].weight is weight.weight
weight(x).square().sum().backward()
near = torch.nn.Linear(3, 3)
near.load_state_dict({k: v.cpu() for k, v in weight.state_dict().items()})
near(x.cpu()).square().sum().backward()
torch.testing.assert_close(weight.weight.grad.cpu(), near.weight.grad)
there = torch.arange(3.0, device="standin:1")
for wrong in (
    lambda: x + there, lambda: x * there[0], lambda: torch.cat([x, there[None]]),
    lambda: x[there[:1].long()], lambda: x.index_put_((torch.tensor([0]),), there),
    lambda: torch.ones(1).to("standin:9"),
):
    with pytest.raises(RuntimeError):
        wrong()
near = torch.ones(3)
assert x.to(there.device).device == (there + near.to(there.device)).device == there.device
assert torch.zeros_like(there).device == there[there > 0].device == there.device
assert torch.empty_like(x).copy_(there).tolist() == [[0, 1, 2]] * 2
plain = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
rounded = (plain.to(device) @ plain.to(device)).cpu()
assert not torch.equal(rounded, plain @ plain)
torch.testing.assert_close(rounded, plain @ plain)
stand_in.waits.clear()
x.sum().item(), x.cpu(), x[x > 1], (x > 1).nonzero()
assert stand_in.waits == {"_local_scalar_dense": 1, "to host": 1, "mask": 1, "nonzero": 1}
"""


@needed
def test_it_refuses_what_cuda_refuses_and_counts_waits():
    in_a_process_of_its_own("-c", "import sys; sys.path.insert(0, '.')\n" + REFUSALS)


@needed
@pytest.mark.slow
def test_one_family_and_every_method_pass_on_it():
    """Spread over two; all families, on one or on two: `make test-gpu DEVICE=standin`."""
    told = in_a_process_of_its_own(
        "-m", "pytest", str(HERE), "-k", QUICK, "-m", "not slow", "-p", "no:cacheprovider", "-q",
        "-p", "no:xdist", "-rs", device=SPREAD if stand_in.compiler else stand_in.NAME,
    )  # fmt: skip
    assert "SKIPPED" not in told
