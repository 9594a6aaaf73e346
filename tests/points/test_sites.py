"""What is written stands in memory as what it replaces, where that can be."""

from __future__ import annotations

import pytest
import torch

from vlm_lens.points.sites import laid_as, overlaps

LINE = torch.arange(48.0)


@pytest.mark.parametrize(
    ("original", "apart"),
    [
        (LINE.view(4, 3, 4), True),
        (LINE.view(4, 3, 4).transpose(0, 1), True),
        (LINE.view(4, 12)[:, 2:5], True),  # a part of each row
        (LINE.view(4, 3, 4).permute(2, 0, 1)[::2], True),
        (LINE[:4].expand(3, 4), False),
        (LINE[:1].expand(1, 1), True),
        (LINE.unfold(0, 4, 1), False),  # windows
        (LINE.unfold(0, 4, 4), True),
        (LINE[:0], True),
    ],
)
def test_layout_is_the_originals_unless_its_places_overlap(original, apart):
    flat = original.flatten().tolist()
    assert (len(set(flat)) == len(flat)) == apart == (not overlaps(original))
    value = torch.randn(original.shape, dtype=torch.float64, requires_grad=True)
    laid = laid_as(value, original)
    assert torch.equal(laid, value)
    if apart and len(flat) > 1:
        assert laid.stride() == original.stride()
    [gradient] = torch.autograd.grad((laid * 3).sum(), value)
    assert gradient.eq(3).all()
