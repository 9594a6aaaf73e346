from __future__ import annotations

import copy

import pytest
import tiny
import torch
from steps import steps_of
from torch import nn

from vlm_lens import HookedVLM, Last
from vlm_lens.hooked.identity import run_identity
from vlm_lens.interventions.ablate import Ablate
from vlm_lens.reading.vectors import TaskVector
from vlm_lens.storage.weights import WeightsDigest, is_plain, weights_digest
from vlm_lens.sweep.run import sweep


class Several(nn.Module):
    """Tensors of every size, dtype and place in memory that a digest must read."""

    def __init__(self, seed=0):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.large = nn.Parameter(torch.randn(300, 700, generator=draw))
        self.wide = nn.Parameter(torch.randn(64, 2048, generator=draw).double())
        self.narrow = nn.Parameter(torch.randn(40_001, generator=draw).bfloat16())
        self.turned = nn.Parameter(torch.randn(5, 9, generator=draw).T)
        self.piece = nn.Parameter(torch.randn(70_001, generator=draw).half()[1:])
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.register_buffer("count", torch.arange(10))
        self.register_buffer("switch", torch.tensor([True, False]))
        self.register_buffer("passing", torch.ones(3), persistent=False)


# every change of content that must be seen, signs flipped in pairs among them
CHANGES = {
    "one bit": lambda m: m.large.data.view(torch.int32)[299, 699].bitwise_xor_(1),
    "a column's signs": lambda m: m.large.data[:, 3].neg_(),
    "all signs": lambda m: m.wide.data.neg_(),
    "two signs": lambda m: m.narrow.data[3:8:4].neg_(),
    "two rows swapped": lambda m: m.large.data.copy_(m.large.data.flip(0)),
    "scaled": lambda m: m.wide.data.mul_(2),
    "the last of an odd number": lambda m: m.piece.data[-1:].add_(1),
    "a turned one": lambda m: m.turned.data[0, 1:2].add_(1),
    "a counter": lambda m: m.count.add_(1),
    "a switch": lambda m: m.switch.logical_not_(),
    "a buffer that is not saved": lambda m: m.passing.add_(1),
    "another dtype": lambda m: m.float(),
    "another name": lambda m: setattr(m, "renamed", m._parameters.pop("turned")),
    "a shape": lambda m: setattr(m, "large", nn.Parameter(m.large.data.view(700, 300))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(change):
    model = Several()
    before = weights_digest(model)
    assert weights_digest(model) is before  # nothing changed: it is not hashed again
    assert weights_digest(Several(), exact=True) == before
    CHANGES[change](model)
    assert weights_digest(model, exact=True) != before


@torch.no_grad()
def test_changes_by_autograd_s_rules_are_seen_without_reading_everything():
    model = Several()
    for change in (
        lambda: model.large[17, 23].add_(1),
        lambda: nn.init.zeros_(model.turned),
        lambda: model.load_state_dict(Several(1).state_dict()),
        lambda: torch.optim.SGD([model.narrow], 0.1).step(
            lambda: setattr(model.narrow, "grad", torch.ones_like(model.narrow))
        ),
        lambda: setattr(model, "piece", nn.Parameter(model.piece + 1)),
        lambda: model.piece.data.mul_(1.01),  # past autograd, but everywhere
    ):
        before = weights_digest(model)
        change()
        assert weights_digest(model) != before


def test_seeds_and_copies():
    assert weights_digest(Several(0)) != weights_digest(Several(1))
    model = Several()
    twin = copy.deepcopy(model)
    assert weights_digest(twin) == weights_digest(model)
    with torch.inference_mode():  # such tensors count no versions
        frozen = Several()
    assert weights_digest(frozen) == weights_digest(model)


def test_signs_are_the_same_however_the_weights_are_rounded():
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 3))
    signs = weights_digest(model).signs
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        other = copy.deepcopy(model).to(dtype)
        assert weights_digest(other).signs == signs
        assert weights_digest(other).text != weights_digest(model).text
    model[1].weight.data[2, 5].neg_()
    assert weights_digest(model, exact=True).signs != signs


class Shell(torch.Tensor):
    """A tensor that stands for others, as quantised and sharded ones do; none of its own data."""

    @staticmethod
    def __new__(cls, inner, readable=True):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=torch.float32)

    def __init__(self, inner, readable=True):
        self.inner = inner
        self.readable = readable

    def __tensor_flatten__(self):
        return (["inner"] if self.readable else []), None

    @classmethod
    def __torch_dispatch__(cls, function, kinds, args=(), options=None):
        if function is torch.ops.aten.detach.default:
            return Shell(args[0].inner, args[0].readable)
        raise NotImplementedError(f"quantised: {function}")


def quantised(vlm):
    """The output layer as torch's own dynamic quantisation leaves it."""
    with pytest.warns(Warning):
        torch.ao.quantization.quantize_dynamic(vlm.hf_model, {"lm_head"}, torch.qint8, inplace=True)


def packed(vlm):
    weight = vlm.hf_model.lm_head.weight.detach()
    vlm.hf_model.lm_head.weight = nn.Parameter(Shell(weight), requires_grad=False)
    vlm.hf_model.lm_head.forward = lambda x: x @ weight.T


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", [quantised, packed])
def test_a_head_that_cannot_be_hashed_stops_no_run(change):
    vlm = HookedVLM(tiny.build("clip-llama"), tiny.reader("clip-llama"))
    prompt = vlm.prompt("Q:Peru\nA:")
    change(vlm)
    want = vlm.hf_model(**prompt.inputs).logits
    torch.testing.assert_close(vlm.run(prompt), want)
    assert vlm.facts.unembed_hash is None
    vector = TaskVector.read(vlm, ["Q:Peru\nA:"], at=Last())
    edit = Ablate("blocks.*.hook_mlp_out", at=Last())
    assert len(sweep(vlm, prompt, edit.each_layer(), progress=False)) == vlm.cfg.n_layers
    before = run_identity(vlm)
    assert run_identity(vlm) == before and vector.source.name == vlm.name
    other = HookedVLM(tiny.build("clip-llama", seed=3), vlm.processor)
    change(other)
    assert run_identity(other)["weights"] != before["weights"]


def test_what_cannot_be_read_is_said():
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(Shell(torch.ones(2, 2), readable=False), requires_grad=False)
    assert not is_plain(model.weight) and is_plain(model.bias) and not is_plain(model.forward)
    assert weights_digest(model).unread == ("weight: held as Shell",)
    with torch.device("meta"):
        away = nn.Linear(2, 2)
    found = weights_digest(away, exact=True)
    assert found.unread == ("weight: offloaded", "bias: offloaded")
    assert str(found).endswith("(without weight: offloaded and 1 more)")
    assert str(WeightsDigest("ab", "cd")) == "ab"


def test_it_costs_little():
    """A few steps a tensor that nobody changed, however many there are and however large."""

    def steps(n: int, width: int) -> int:
        model = nn.Sequential(*(nn.Linear(width, width) for _ in range(n)))
        weights_digest(model)
        return steps_of(lambda: weights_digest(model)).computed

    few = steps(10, 64)
    assert few <= 10 * 2 * 4
    assert steps(100, 64) <= 10 * few and steps(10, 512) <= few
