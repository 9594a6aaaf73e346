"""The interchange writes where it says, and every weight learns from it."""

from __future__ import annotations

import numpy as np
import torch

from vlm_lens.zoo.train.configs import Shape, decoder_layers
from vlm_lens.zoo.train.corpus import Corpus
from vlm_lens.zoo.train.interchange import Tally, Tap, tapped, text_losses
from vlm_lens.zoo.train.llava import Llava
from vlm_lens.zoo.train.tokenization import build_tokenizer
from vlm_lens.zoo.train.world import World


def test_taps_write_read_and_leave_nothing(few: World, mini: Shape) -> None:
    tokenizer = build_tokenizer(few.texts())
    model = Llava(mini).language_model(tokenizer, 0)
    ids = torch.tensor([tokenizer.encode("Q:Peru\nA:")])
    value = torch.ones(1, mini.width)
    tap = Tap(2, torch.tensor([0]), torch.tensor([ids.shape[1] - 1]), value)
    plain = model(ids).logits
    with tapped(model, tap):
        patched = model(ids).logits
    assert torch.equal(tap.seen[0, -1], value[0])
    assert torch.equal(patched[:, :-1], plain[:, :-1])
    assert not torch.equal(patched[:, -1], plain[:, -1])
    assert not any(layer._forward_hooks for layer in decoder_layers(model))


def test_the_interchange_teaches_through_source_and_target(few: World, mini: Shape) -> None:
    tokenizer = build_tokenizer(few.texts())
    model = Llava(mini).language_model(tokenizer, 0)
    corpus = Corpus(few, tokenizer, Llava(mini), False)
    tally = Tally()
    stage = Llava.stages[1]
    loss = text_losses(
        model, corpus, np.random.default_rng(0), stage.planting, tally,
        contexts=4, bares=2, targets=3, blanks=2, examples=2,
    )  # fmt: skip
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    means = tally.means()
    assert {"name_acc", "context_acc", "patch_acc", "blank_acc", "input_lens_loss"} <= set(means)
    assert not tally.sums
