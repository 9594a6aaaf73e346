"""Edges and circuits: the known one, edges against exchanged ones by plain hooks, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from families import texts
from families.every import VLMS
from induction_case import model
from pairs.pairs_of_cells import cell_pair
from patching.pairs_of_prompts import MEASURE, TOKENS, other_lengths, same_shape
from PIL import Image

from vlm_lens import HookedVLM, VLMLensError
from vlm_lens.attribution import Circuit, Edges, attribute_edges
from vlm_lens.attribution.graph import Graph
from vlm_lens.pairs import task_pairs

KNOWN = {("input", "L2H2 v"), ("L2H2", "logits")}


@pytest.mark.parametrize("method", ["gradient", "ig"])
def test_the_known_circuit_is_found(method):
    """A cell's color goes from its patch into the values of L2H2, and on to the logits."""
    pair = cell_pair("b3")
    edges = pair.edges(model(), method=method)
    circuit = edges.circuit(50)
    assert set(circuit.edges) == KNOWN and set(circuit.nodes) == {"input", "L2H2", "logits"}
    for sender, receiver in KNOWN:
        share = float(edges.sel(component=sender, receiver=receiver).values)
        assert share == pytest.approx(1, abs=1e-4)
    assert circuit.faithfulness(model()) == pytest.approx(1, abs=1e-4)
    assert Circuit(tuple(KNOWN)[:1], circuit.asked).faithfulness(model()) == pytest.approx(0)
    other = cell_pair("c1", 2)
    options = {"clean": other.clean, "corrupt": other.corrupt, "measure": other.measure}
    assert circuit.faithfulness(model(), **options) == pytest.approx(1, abs=1e-4)
    means = [cell_pair("b3", shift).clean for shift in range(1, 4)]
    assert circuit.faithfulness(model(), outside=means) == pytest.approx(1, abs=1e-4)
    assert edges.curve(model(), (1, 2)).values.to_numpy() == pytest.approx([0, 1], abs=1e-4)


@pytest.fixture(scope="module", params=["llava-clip", "qwen2_vl", "qwen3_vl", "idefics2", "fuyu"])
def made(request, tmp_path_factory):
    """Grouped heads, DeepStack, LayerNorm, fused projections."""
    vlm = VLMS[request.param].load(tmp_path_factory.mktemp(request.param))
    clean, corrupt = same_shape(vlm)
    return vlm, clean, corrupt


def value(logits: torch.Tensor) -> float:
    return float(logits[0, -1, TOKENS[0]] - logits[0, -1, TOKENS[1]])


def test_all_edges_are_the_clean_run_and_none_the_corrupt_one(made):
    vlm, clean, corrupt = made
    edges = attribute_edges(vlm, clean, corrupt, measure=MEASURE)
    graph = Graph(vlm)
    ends = [r.name for r in graph.receivers]
    grid = edges.values.to_numpy()
    everything = tuple(
        (name, end)
        for i, name in enumerate(edges.values["component"].to_numpy().tolist())
        for j, end in enumerate(ends)
        if not np.isnan(grid[i, j])
    )
    whole = Circuit(everything, edges.asked)
    assert whole.faithfulness(vlm) == pytest.approx(1, abs=1e-4)
    run = whole._run(vlm)
    assert run.measured(()) == pytest.approx(value(tiny.plain_logits(vlm.hf_model, corrupt.inputs)),
                                             rel=1e-3, abs=1e-3)  # fmt: skip
    assert run.measured(everything) == pytest.approx(
        value(tiny.plain_logits(vlm.hf_model, clean.inputs)), rel=1e-3, abs=1e-3
    )


@pytest.fixture(scope="module")
def slight(tmp_path_factory):
    """Two pictures that differ so little that first order is exact."""
    vlm = VLMS["llava-clip"].load(tmp_path_factory.mktemp("slight"))
    one = tiny.noise_picture(0, (32, 32))
    two = Image.eval(one, lambda v: min(v + 1, 255))
    return vlm, *(vlm.prompt("Q:<image>\nA:", [p]) for p in (one, two))


def test_a_score_is_what_exchanging_that_edge_alone_takes(slight):
    vlm, clean, corrupt = slight
    edges = attribute_edges(vlm, clean, corrupt, measure=MEASURE)
    everything = [
        (s, r.name)
        for s in edges.values["component"].to_numpy().tolist()
        for r in Graph(vlm).receivers
        if not np.isnan(float(edges.values.sel(component=s, receiver=r.name)))
    ]
    run = Circuit(tuple(everything), edges.asked)._run(vlm)
    whole, none = run.measured(everything), run.measured(())
    for edge in [("input", "L0H1 q"), ("input", "L1H2 v"), ("L0H3", "L0 mlp"), ("input", "L1 v0"),
                 ("L0 mlp", "L1 k1"), ("L1H0", "L1 mlp"), ("L0 mlp", "logits")]:  # fmt: skip
        if edge not in everything:  # keys and values of shared heads are the block's
            continue
        without = [e for e in everything if e != edge]
        lost = (whole - run.measured(without)) / (whole - none)
        found = float(edges.values.sel(component=edge[0], receiver=edge[1]))
        assert found == pytest.approx(lost, rel=0.1, abs=5e-3), edge


def test_an_edge_by_plain_hooks(slight):
    """From the input into the last MLP: what its norm reads is the stream with that exchanged."""
    vlm, clean, corrupt = slight
    edges = attribute_edges(vlm, clean, corrupt, measure=MEASURE)
    circuit = edges.circuit(10**6)
    graph = Graph(vlm)
    allowed = graph.allowed(
        [-1 if n == "input" else 2 * int(n[1]) + ("mlp" in n)
         for n in edges.values["component"].to_numpy().tolist()]
    )  # fmt: skip
    everything = [
        (s, r.name)
        for i, s in enumerate(edges.values["component"].to_numpy().tolist())
        for j, r in enumerate(graph.receivers)
        if allowed[i, j]
    ]
    without = [e for e in everything if e != ("input", "L1 mlp")]
    found = circuit._run(vlm).measured(without)
    one, two = (
        tiny.plain_read(vlm.hf_model, p.inputs, ["hook_merged"])["hook_merged"]
        for p in (clean, corrupt)
    )
    block = vlm.hf_model.model.language_model.layers[1]
    norm = block.post_attention_layernorm
    logits = []
    handle = norm.register_forward_hook(lambda m, args, out: norm.forward(args[0] + two - one))
    try:
        logits = tiny.plain_logits(vlm.hf_model, clean.inputs)
    finally:
        handle.remove()
    assert found == pytest.approx(value(logits), rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_a_circuit_for_capitals_is_faithful():
    vlm = HookedVLM.from_pretrained("toy-idefics2")
    pair = task_pairs(vlm, "country-capital", 1, instruction=True, seed=0)[0]
    edges = pair.edges(vlm, method="ig")
    few = edges.circuit(100)
    assert len(few) < 0.1 * int((~np.isnan(edges.values.to_numpy())).sum())
    assert few.faithfulness(vlm) == pytest.approx(1, abs=0.05)
    curve = edges.curve(vlm, (1, 5, 100))
    assert curve.axes == ("edges",) and list(curve.plot().data[0].x) == [1, 5, 100]


def test_what_has_no_edges_is_told(tmp_path, slight):
    for name, words in (
        ("gemma3", "a norm stands between the heads and the stream"),
        ("mllama", "cross-attention"),
        ("aya_vision", "read the same norm"),
    ):
        vlm = VLMS[name].load(tmp_path / name)
        clean, corrupt = same_shape(vlm)
        with pytest.raises(VLMLensError, match=words):
            attribute_edges(vlm, clean, corrupt, measure=MEASURE)
    vlm, clean, corrupt = slight
    with pytest.raises(VLMLensError, match="of one shape"):
        attribute_edges(vlm, *other_lengths(vlm), measure=MEASURE)
    edges = attribute_edges(vlm, clean, corrupt, measure=MEASURE)
    for ask, words in (
        (lambda: edges.circuit(0), "at least 1 edge"),
        (lambda: edges.sum("receiver").circuit(3), "made of edges"),
        (lambda: Circuit((("input", "L9 mlp"),), edges.asked).faithfulness(vlm), "no edge input"),
        (lambda: Circuit(()).faithfulness(vlm), "knows no prompts"),
        (lambda: edges.circuit(3).faithfulness(vlm, outside="zero"), "outside is"),
        (lambda: edges.circuit(3).faithfulness(vlm, outside=[vlm.prompt("A")]), "positions"),
    ):
        with pytest.raises(VLMLensError, match=words):
            ask()
    again = Edges.load(edges.save(tmp_path / "edges"))
    np.testing.assert_array_equal(again.values, edges.values)
    text = HookedVLM(texts.build("mamba2"))
    with pytest.raises(VLMLensError, match="every part of a block"):
        Graph(text)
