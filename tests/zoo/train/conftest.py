"""Models small enough to be trained in a test, and the package's tables with few entities."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerFast

from vlm_lens.zoo.train.configs import Shape
from vlm_lens.zoo.train.tokenization import build_tokenizer
from vlm_lens.zoo.train.world import World, load_world


@pytest.fixture(scope="session")
def mini() -> Shape:
    """The shape of a model of 6 blocks, 16 wide."""
    return Shape(
        layers=6, width=16, heads=4, mlp=32, vision_layers=2, vision_width=16, vision_heads=2,
        vision_mlp=32, image_size=16, patch_size=8, latents=2,
    )  # fmt: skip


@pytest.fixture(scope="session")
def few() -> World:
    """The package's tables, with eight entities of each domain."""
    full = load_world()
    return replace(full, entities={d: e[:8] for d, e in full.entities.items()})


@pytest.fixture(scope="session")
def world() -> World:
    """The package's tables."""
    return load_world()


@pytest.fixture(scope="session")
def tokenizer(world: World) -> PreTrainedTokenizerFast:
    """The tokenizer of the tables."""
    return build_tokenizer(world.texts())
