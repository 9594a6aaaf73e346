"""A language model of three small blocks, and a world of few rows."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vlm_lens.zoo.smol.language import Language
from vlm_lens.zoo.smol.transfer import TASKS
from vlm_lens.zoo.train.world import World, load_world

TABLES = Path(load_world().pictures).parent


@pytest.fixture(scope="session")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="session")
def base(tokenizer) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    return tiny.randomize(LlamaForCausalLM(config)).eval()


@pytest.fixture(scope="session")
def language(base) -> Language:
    return Language.of(base.state_dict(), base.config.to_dict())


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    """The six tasks with seven rows a split: enough for five examples and a query."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "tables").mkdir()
    (folder / "pictures").symlink_to(TABLES / "pictures")
    for task in TASKS:
        with (TABLES / "tables" / f"{task}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        kept = [r for s in ("validation", "test") for r in [x for x in rows if x["split"] == s][:7]]
        with (folder / "tables" / f"{task}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(kept)
    return load_world(folder)


@pytest.fixture(autouse=True)
def one_thread_of_determinism():
    yield
    torch.use_deterministic_algorithms(False)
