"""What a result is made of, by the graph of its run, against what changes it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlm_lens.families.parts.reached import Reached

PATHS = ["first", "blocks.0", "blocks.1", "blocks.2"]


class Chain(nn.Module):
    """Blocks of which the last is computed and not read."""

    def __init__(self, *, in_place: bool):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        self.in_place = in_place

    def forward(self, x):
        x = self.blocks[0](self.first(x))
        if self.in_place:
            x.mul_(2.0)
        read = self.blocks[1](x)
        self.blocks[2](read)
        return read + x


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_read_is_met(in_place, frozen):
    model = Chain(in_place=in_place).requires_grad_(not frozen)
    x = torch.randn(2, 3)
    with torch.no_grad():
        plain = model(x)
        reached = Reached()
        with reached.watching(model, PATHS):
            result = model(x)
    assert torch.equal(result, plain)
    assert reached.of(result) == set(PATHS[:3])
    assert not any(m._forward_hooks for m in model.modules())


def test_a_result_without_a_graph_tells_nothing():
    model, reached = Chain(in_place=False), Reached()
    with reached.watching(model, PATHS), torch.no_grad():
        assert reached.of(model(torch.randn(2, 3)).argmax()) == set()
