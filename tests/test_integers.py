"""Whole numbers of Python, numpy and torch, and what is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from typecheck import unchecked

from vlm_lens import Ablate, At, Find, LogitLens, Patches
from vlm_lens.errors import PositionError, VLMLensError
from vlm_lens.integers import as_integer, as_integers, is_integer
from vlm_lens.layout.positions import as_position


@pytest.mark.parametrize("three", [3, np.int64(3), np.uint8(3)])
def test_every_librarys_three_is_three(three):
    assert is_integer(three)
    assert as_integer(three, "It") == 3
    assert At(three) == At(3)
    assert hash(At(three)) == hash(At(3))
    assert Find(":", three) == Find(":", 3)
    assert Patches(0, rows=three) == Patches(0, rows=3)
    assert Ablate("blocks.0.attn.hook_z", at=At(0), heads=three).heads == (3,)


def test_lists_of_them():
    for given in ([0, 2], (0, 2), np.array([0, 2]), torch.tensor([0, 2]), range(0, 3, 2)):
        assert as_integers(given, "It") == (0, 2)
        assert At(given) == At((0, 2))


@pytest.mark.parametrize("wrong", [True, 1.0, np.float32(1), "1", None, np.bool_(True), 1j])
def test_what_is_none(wrong):
    assert not is_integer(wrong)
    with pytest.raises(VLMLensError, match="whole number"):
        as_integer(wrong, "It")
    with pytest.raises(PositionError, match="whole number"):
        At(wrong)
    with pytest.raises(PositionError, match="is not a position"):
        unchecked(as_position)(wrong)


def test_tokens_by_number(llama):
    for token in (np.int64(7), torch.tensor(7), 7):
        assert llama.to_token_id(token) == 7
        found = LogitLens(tokens=token).run(llama, "Q:Greece").to_dataframe()
        assert len(found)
    for wrong in (-1, llama.cfg.d_vocab):
        with pytest.raises(VLMLensError, match="ids of this model are 0 to"):
            llama.to_token_id(wrong)
        with pytest.raises(VLMLensError, match="0 to"):
            llama.sweep("Q:", [()], measure=[wrong], progress=False)
