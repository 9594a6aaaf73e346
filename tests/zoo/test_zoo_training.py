"""Training can be killed and resumed, and the interchange does what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vlm_lens.zoo.train.configs import Shape, decoder_layers, is_joined
from vlm_lens.zoo.train.corpus import Corpus
from vlm_lens.zoo.train.interchange import Tally, Tap, tapped, text_losses
from vlm_lens.zoo.train.llava import Llava
from vlm_lens.zoo.train.loop import Trainer
from vlm_lens.zoo.train.organism import Organism
from vlm_lens.zoo.train.organisms import ORGANISMS
from vlm_lens.zoo.train.stages import Stage, learning_rate, scaled
from vlm_lens.zoo.train.tokenization import build_tokenizer
from vlm_lens.zoo.train.world import World, load_world

MINI = Shape(
    layers=6, width=16, heads=4, mlp=32, vision_layers=2, vision_width=16, vision_heads=2,
    vision_mlp=32, image_size=16, patch_size=8, latents=2,
)  # fmt: skip


def mini_stages(organism: type[Organism] = Llava) -> tuple[Stage, ...]:
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
            image_targets=min(s.image_targets, 2),
        )
        for s in organism.stages
    )


@pytest.fixture(scope="module")
def world() -> World:
    """Load the package's tables, with few entities."""
    full = load_world()
    return replace(full, entities={d: e[:8] for d, e in full.entities.items()})


def trainer(organism: type[Organism], world: World, work: Path, out: Path | None = None) -> Trainer:
    """Make a trainer of mini models that saves after every step."""
    return Trainer(
        organism(MINI), world, work, stages=mini_stages(organism), out=out,
        save_every=1, log_every=1,
    )  # fmt: skip


@pytest.mark.parametrize("organism", ORGANISMS, ids=lambda o: o.name)
def test_resumed_equals_uninterrupted(
    organism: type[Organism], world: World, tmp_path: Path
) -> None:
    whole = trainer(organism, world, tmp_path / "whole", tmp_path / "out").run()
    model, runs = None, 0
    while True:
        runs += 1
        model = trainer(organism, world, tmp_path / "parts").run(minutes=1e-9)
        state = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
        if state["stage"] == len(organism.stages):
            break
        assert runs < 20
    assert runs > len(organism.stages)
    for (name, a), b in zip(whole.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name

    again = trainer(organism, world, tmp_path / "parts").run().state_dict()
    assert all(torch.equal(again[k], v) for k, v in whole.state_dict().items())
    language = trainer(organism, world, tmp_path / "parts").run(until=organism.language_name)
    assert not is_joined(language)

    def log(folder: str) -> list[dict]:
        lines = (tmp_path / folder / "train_log.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines]

    assert log("whole") == log("parts")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        organism.language_name, organism.name,
    }  # fmt: skip


def test_another_seed_is_refused(world: World, tmp_path: Path) -> None:
    trainer(Llava, world, tmp_path).run(minutes=1e-9)
    other = Trainer(Llava(MINI), world, tmp_path, stages=mini_stages(), seed=1)
    with pytest.raises(ValueError, match="seed"):
        other.run()
    with pytest.raises(ValueError, match="belongs to toy-llava"):
        trainer(ORGANISMS[1], world, tmp_path).run()


def test_taps_write_read_and_leave_nothing(world: World) -> None:
    tokenizer = build_tokenizer(world.texts())
    model = Llava(MINI).language_model(tokenizer, 0)
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
    model = Llava(MINI).language_model(tokenizer, 0)
    corpus = Corpus(world, tokenizer, Llava(MINI), False)
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


def test_schedule_and_scaling() -> None:
    stage = Stage("x", False, 100, lr=1.0, warmup=10, decay=0.5, final=0.1)
    rates = [learning_rate(stage, s) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[20] == rates[49] == 1.0
    assert rates[99] < 0.13
    assert sum(s.steps for s in scaled(Llava.stages, 100)) == pytest.approx(100, abs=5)
