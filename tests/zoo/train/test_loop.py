"""Training can be killed and resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vlm_lens.zoo.train.configs import Shape, is_joined
from vlm_lens.zoo.train.curriculum import Stage
from vlm_lens.zoo.train.llava import Llava
from vlm_lens.zoo.train.loop import Trainer
from vlm_lens.zoo.train.organism import Organism
from vlm_lens.zoo.train.organisms import ORGANISMS
from vlm_lens.zoo.train.world import World


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


def trainer(
    organism: type[Organism], mini: Shape, few: World, work: Path, out: Path | None = None
) -> Trainer:
    """Make a trainer of mini models that saves after every step."""
    return Trainer(
        organism(mini), few, work, stages=mini_stages(organism), out=out,
        save_every=1, log_every=1,
    )  # fmt: skip


@pytest.mark.parametrize("organism", ORGANISMS, ids=lambda o: o.name)
def test_resumed_equals_uninterrupted(
    organism: type[Organism], mini: Shape, few: World, tmp_path: Path
) -> None:
    whole = trainer(organism, mini, few, tmp_path / "whole", tmp_path / "out").run()
    model, runs = None, 0
    while True:
        runs += 1
        model = trainer(organism, mini, few, tmp_path / "parts").run(minutes=1e-9)
        state = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
        if state["stage"] == len(organism.stages):
            break
        assert runs < 20
    assert runs > len(organism.stages)
    for (name, a), b in zip(whole.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name

    again = trainer(organism, mini, few, tmp_path / "parts").run().state_dict()
    assert all(torch.equal(again[k], v) for k, v in whole.state_dict().items())
    language = trainer(organism, mini, few, tmp_path / "parts").run(until=organism.language_name)
    assert not is_joined(language)

    def log(folder: str) -> list[dict]:
        lines = (tmp_path / folder / "train_log.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines]

    assert log("whole") == log("parts")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        organism.language_name, organism.name,
    }  # fmt: skip


def test_another_seed_is_refused(mini: Shape, few: World, tmp_path: Path) -> None:
    trainer(Llava, mini, few, tmp_path).run(minutes=1e-9)
    other = Trainer(Llava(mini), few, tmp_path, stages=mini_stages(), seed=1)
    with pytest.raises(ValueError, match="seed"):
        other.run()
    with pytest.raises(ValueError, match="belongs to toy-llava"):
        trainer(ORGANISMS[1], mini, few, tmp_path).run()
