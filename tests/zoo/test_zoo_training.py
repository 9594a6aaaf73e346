"""Training can be killed and resumed, and the interchange does what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vlm_lens.zoo.train.configs import Shape, build_llama, decoder_layers
from vlm_lens.zoo.train.corpus import Corpus
from vlm_lens.zoo.train.interchange import Tally, Tap, tapped, text_losses
from vlm_lens.zoo.train.loop import Trainer
from vlm_lens.zoo.train.stages import STAGES, Stage, learning_rate, scaled
from vlm_lens.zoo.train.tokenization import build_tokenizer
from vlm_lens.zoo.train.world import World, load_world

MINI = Shape(
    layers=6, width=16, heads=2, mlp=32, vision_layers=2, vision_width=16, vision_heads=2,
    vision_mlp=32, image_size=16, patch_size=8,
)  # fmt: skip


def mini_stages() -> tuple[Stage, ...]:
    """Shrink every stage to two steps of few prompts."""
    return tuple(
        replace(
            s,
            steps=2,
            warmup=1,
            contexts=min(s.contexts, 3),
            bares=min(s.bares, 2),
            targets=min(s.targets, 2),
            blanks=min(s.blanks, 2),
            image_matches=min(s.image_matches, 4),
            image_contexts=min(s.image_contexts, 2),
            image_bares=min(s.image_bares, 2),
        )
        for s in STAGES
    )


@pytest.fixture(scope="module")
def world() -> World:
    """Load the package's tables, with few entities."""
    full = load_world()
    return replace(full, entities={d: e[:8] for d, e in full.entities.items()})


def trainer(world: World, work: Path, out: Path | None = None) -> Trainer:
    """Make a trainer of the mini models that saves after every step."""
    return Trainer(
        world, work, shape=MINI, stages=mini_stages(), out=out, save_every=1, log_every=1
    )


def test_resumed_equals_uninterrupted(world: World, tmp_path: Path) -> None:
    whole = trainer(world, tmp_path / "whole", tmp_path / "out").run()
    model, runs = None, 0
    while True:
        runs += 1
        model = trainer(world, tmp_path / "parts").run(minutes=1e-9)
        state = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
        if state["stage"] == len(STAGES):
            break
        assert runs < 20
    assert runs > len(STAGES)
    for (name, a), b in zip(whole.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name

    again = trainer(world, tmp_path / "parts").run().state_dict()
    assert all(torch.equal(again[k], v) for k, v in whole.state_dict().items())
    language = trainer(world, tmp_path / "parts").run(until="toy-vicuna")
    assert not hasattr(language.model, "language_model")

    def log(folder: str) -> list[dict]:
        lines = (tmp_path / folder / "train_log.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines]

    assert log("whole") == log("parts")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"toy-vicuna", "toy-llava"}


def test_another_seed_is_refused(world: World, tmp_path: Path) -> None:
    trainer(world, tmp_path).run(minutes=1e-9)
    other = Trainer(world, tmp_path, shape=MINI, stages=mini_stages(), seed=1)
    with pytest.raises(ValueError, match="seed"):
        other.run()


def test_taps_write_read_and_leave_nothing(world: World) -> None:
    tokenizer = build_tokenizer(world.texts())
    model = build_llama(MINI, tokenizer)
    ids = torch.tensor([tokenizer.encode("Q:Peru\nA:")])
    value = torch.ones(1, MINI.width)
    tap = Tap(2, torch.tensor([0]), torch.tensor([ids.shape[1] - 1]), value)
    plain = model(ids).logits
    with tapped(model, tap):
        patched = model(ids).logits
    assert torch.equal(tap.seen[0, -1], value[0])
    assert torch.equal(patched[:, :-1], plain[:, :-1])
    assert not torch.equal(patched[:, -1], plain[:, -1])
    assert not any(layer._forward_hooks for layer in decoder_layers(model))


def test_the_interchange_teaches_through_source_and_target(world: World) -> None:
    tokenizer = build_tokenizer(world.texts())
    model = build_llama(MINI, tokenizer)
    corpus = Corpus(world, tokenizer, MINI.image_tokens)
    tally = Tally()
    stage = STAGES[1]
    loss = text_losses(
        model, corpus, np.random.default_rng(0), stage.planting, tally,
        contexts=4, bares=2, targets=3, blanks=2, examples=2,
    )  # fmt: skip
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    means = tally.means()
    assert {"name_acc", "context_acc", "patch_acc", "blank_acc", "input_lens_loss"} <= set(means)
    assert not tally.sums


def test_schedule_and_scaling() -> None:
    stage = Stage("x", "toy-vicuna", 100, lr=1.0, warmup=10, decay=0.5, final=0.1)
    rates = [learning_rate(stage, s) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[20] == rates[49] == 1.0
    assert rates[99] < 0.13
    assert sum(s.steps for s in scaled(STAGES, 100)) == pytest.approx(100, abs=5)
