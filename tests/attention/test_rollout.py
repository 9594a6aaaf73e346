from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from PIL import Image

from vlm_lens import Images, Patches
from vlm_lens.attention import attention_flow, attention_rollout
from vlm_lens.attention.parts import AttentionError

PICTURES = [Image.effect_noise((48, 36), 90).convert("RGB"), Image.new("RGB", (40, 40), "teal")]


@pytest.fixture
def case(load):
    vlm = load("clip-llama")
    prompt = vlm.prompt("<image> or <image>\nA:", images=PICTURES)
    points = vlm.architecture.points
    names = [f"vision.blocks.{i}.attn.hook_pattern" for i in range(vlm.cfg.vision.n_layers)]
    read = [name for name in names if points[name].writable]
    _, cache = vlm.run_with_cache(prompt, names_filter="vision.blocks.*.attn.hook_pattern")
    blocks = [cache[name][1].mean(0).numpy() for name in read]
    return vlm, prompt, blocks, prompt.layout.image[1].vision.grid().patch(1, 0)


def mixed(block, residual):
    return (1 - residual) * block + residual * np.eye(len(block))


@pytest.mark.parametrize("residual", [0.5, 0.0, 1.0])
def test_rollout_is_the_product_of_the_blocks(case, residual):
    vlm, prompt, blocks, query = case
    expected = np.eye(len(blocks[0]))
    for block in blocks:
        expected = mixed(block, residual) @ expected
    at = Patches(1, rows=(1, 2), cols=(0, 1))
    found = attention_rollout(vlm, prompt, at=at, residual=residual)
    np.testing.assert_allclose(found.values, expected[query], atol=1e-6)
    assert float(found.sum("position").values) == pytest.approx(1, abs=1e-5)
    assert found.space == "vision" and "data-i" in found.over_picture()._repr_html_()


def test_flow_is_the_maximum_flow(case):
    vlm, prompt, blocks, query = case
    blocks = [mixed(b, 0.5) for b in blocks]
    graph = nx.DiGraph()
    for level, block in enumerate(blocks):
        for q, k in zip(*block.nonzero(), strict=True):
            graph.add_edge((level + 1, q), (level, k), capacity=float(block[q, k]))
    at = Patches(1, rows=(1, 2), cols=(0, 1))
    found = attention_flow(vlm, prompt, at=at).values.to_numpy()
    for target in (0, query, len(blocks[0]) - 1):
        expected = nx.maximum_flow_value(graph, (len(blocks), query), (0, target))
        assert found[target] == pytest.approx(expected, abs=1e-4)


def test_what_cannot_be_rolled_out_is_refused(case, no_forward):
    vlm, prompt, _, _ = case
    no_forward(vlm)
    with pytest.raises(AttentionError, match="a share from 0 to 1"):
        attention_rollout(vlm, prompt, at=Patches(0), residual=2.0)
    with pytest.raises(AttentionError, match="one picture"):
        attention_rollout(vlm, prompt, at=Images())
