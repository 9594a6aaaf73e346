"""The plain forward, writes and the low-rank update against transformers' own Llama."""

from __future__ import annotations

import copy

import tiny
import torch

from vlm_lens.zoo.smol.language import KINDS, SCALE, LowRank, Patch


def test_equal_to_transformers(base, language):
    ids = torch.randint(0, 100, (3, 9), generator=torch.Generator().manual_seed(0))
    at = torch.tensor([8, 3, 5])
    found = language.read(language.merged(), language.embed[ids], at=at)
    with torch.no_grad():
        own = base(ids, output_hidden_states=True)
    torch.testing.assert_close(language.logits(found.last), own.logits, rtol=1e-4, atol=1e-4)
    for block in range(2):  # the last one's is after the norm
        rows = own.hidden_states[block + 1][torch.arange(3), at]
        torch.testing.assert_close(found.read[:, block], rows, rtol=1e-4, atol=1e-4)
    some = torch.tensor([[1, 4], [0, 2], [3, 3]])
    picked = language.logits(found.last, at=some)
    expected = own.logits.gather(1, some.unsqueeze(-1).expand(-1, -1, picked.shape[-1]))
    torch.testing.assert_close(picked, expected, rtol=1e-4, atol=1e-4)


def test_padding_on_the_right_changes_nothing(language):
    ids = torch.randint(0, 100, (1, 6), generator=torch.Generator().manual_seed(1))
    longer = torch.nn.functional.pad(ids, (0, 4))
    merged = language.merged()
    short = language.read(merged, language.embed[ids]).last
    padded = language.read(merged, language.embed[longer]).last[:, :6]
    torch.testing.assert_close(padded, short, rtol=1e-5, atol=1e-5)


def test_a_write_equals_a_plain_hook(base, language):
    ids = torch.randint(0, 100, (2, 7), generator=torch.Generator().manual_seed(2))
    value = torch.randn(2, 32, generator=torch.Generator().manual_seed(3))
    patch = Patch(torch.tensor([1, -1]), torch.tensor([6, 6]), value)
    mine = language.logits(language.read(language.merged(), language.embed[ids], patch=patch).last)

    def write(output):
        output = output.clone()
        output[0, 6] = value[0]
        return output

    with tiny.plain_hook(base.model.layers[1], "output", write), torch.no_grad():
        own = base(ids).logits
    torch.testing.assert_close(mine, own, rtol=1e-4, atol=1e-4)


def test_the_update_is_added_to_the_weights(base, language):
    update = LowRank(language, 3, kinds=("q", "down"), blocks=2, seed=1)
    ids = torch.arange(6).unsqueeze(0)
    before = language.read(language.merged(), language.embed[ids]).last
    at_first = language.read(language.merged(update), language.embed[ids]).last
    assert torch.equal(before, at_first)  # B is zero
    own = copy.deepcopy(base)
    with torch.no_grad():
        for kind in ("q", "down"):
            update.b[kind].normal_()
            for block in range(2):
                weight = own.model.layers[block].get_submodule(KINDS[kind]).weight
                weight += SCALE * update.b[kind][block] @ update.a[kind][block]
        mine = language.logits(language.read(language.merged(update), language.embed[ids]).last)
        torch.testing.assert_close(mine, own(ids).logits, rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in update.parameters()) == 2 * 3 * (32 + 32 + 48 + 32)
