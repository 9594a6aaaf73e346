"""Norms at a fixed scale, measured by calling them, against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from vlm_lens.stream import StreamError
from vlm_lens.stream.norm import HeldNorms, frozen

D = 15  # odd, so that signs alone have a mean


def weights(norm: nn.Module, seed: int = 0) -> nn.Module:
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in norm.parameters():
            weight.copy_(torch.randn(weight.shape, generator=source))
    return norm


NORMS = {
    "layer": weights(nn.LayerNorm(D, eps=1e-3)),
    "layer, bare": nn.LayerNorm(D, elementwise_affine=False),
    "layer, Cohere's": weights(CohereLayerNorm(D)),
    "rms": weights(nn.RMSNorm(D, eps=1e-3)),
    "rms, Llama's": weights(LlamaRMSNorm(D)),
    "rms, Gemma's": weights(Gemma3RMSNorm(D)),
}
GAIN = {"rms, Gemma's": 1.0}  # what the weight says less than the gain


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_the_sum_of_what_it_makes_of_parts(name):
    norm = NORMS[name]
    parts = torch.randn(4, 2, 3, D, generator=torch.Generator().manual_seed(1)) * 5
    x = parts.sum(0)
    held = frozen(norm, x)
    assert held.centred == ("layer" in name)
    weight = getattr(norm, "weight", None)
    if weight is not None:
        torch.testing.assert_close(held.gain.float(), weight.detach() + GAIN.get(name, 0.0))
    total = held.of_part(parts.double()).sum(0) + held.bias
    torch.testing.assert_close(total.float(), norm(x).detach(), rtol=1e-5, atol=1e-5)
    direction = torch.randn(D, generator=torch.Generator().manual_seed(2)).double()
    one = (held.of_part(parts.double()) * direction).sum(-1)
    two = (held.of_direction(direction) * parts.double()).sum(-1)
    torch.testing.assert_close(one, two)


def test_what_is_no_norm_is_refused():
    with pytest.raises(StreamError, match="GroupNorm|Linear is no LayerNorm"):
        frozen(nn.Linear(D, D), torch.randn(2, D))
    with pytest.raises(StreamError, match="no LayerNorm or RMSNorm"):
        frozen(nn.Softmax(-1), torch.randn(2, D))


@pytest.mark.parametrize("name", NORMS)
def test_derivatives_pass_through_norms_at_their_scales(name):
    norm = NORMS[name].double()
    x = torch.randn(3, D, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(D, dtype=torch.float64)
    with HeldNorms():
        out = norm(x)
        (gradient,) = torch.autograd.grad((out * direction).sum(), x)
    torch.testing.assert_close(out, norm(x))
    expected = frozen(norm, x.detach()).of_direction(direction)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    NORMS[name].float()
