from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from reach.shrunk import tiny_config
from transformers import Lfm2ForCausalLM

from vlm_lens import HookedVLM, Last
from vlm_lens.pairs import Pair, Pairs
from vlm_lens.recipes import (
    AttributionPatching,
    CircuitFaithfulness,
    DirectLogitAttribution,
    PairPatching,
    RecipeError,
    Result,
    heads_side_by_side,
)
from vlm_lens.tasks import Task

OPTIONS = {"tasks": "country-capital", "n_pairs": 3, "n_examples": 1}


@pytest.fixture(scope="module")
def toy():
    return HookedVLM.from_pretrained("toy-idefics2")


@pytest.fixture(scope="module")
def results(toy):
    kinds = (PairPatching, AttributionPatching, DirectLogitAttribution)
    return {kind.__name__: kind(**OPTIONS).run(toy, progress=False) for kind in kinds}


def test_methods_stand_side_by_side(results, toy):
    table = heads_side_by_side(results)
    assert len(table) == toy.cfg.n_layers * toy.cfg.n_heads
    assert list(table.columns) == ["layer", "head", *results]
    agreement = table.attrs["rank correlation"]
    assert agreement["PairPatching / AttributionPatching"] > 0.6  # 0.8 on these three pairs
    with pytest.raises(RecipeError, match="no numbers by layer and head"):
        heads_side_by_side({"x": results["PairPatching"].table[["task", "share"]]})


def test_shares_are_those_of_each_pair(results, toy):
    recipe = PairPatching(**OPTIONS)
    pairs = recipe.pairs(toy, Task.load("country-capital"))
    exact = pairs.patch(toy, "blocks.*.attn.hook_z", heads="each", at=Last(), progress=False)
    table = results["PairPatching"].table
    mean = exact.values.mean("pair").to_numpy().ravel()
    np.testing.assert_allclose(table["share"], mean, rtol=1e-6)
    assert ((table["low"] <= table["share"]) & (table["share"] <= table["high"])).all()
    assert set(results["PairPatching"].plots()) == {"heads"}


def test_direct_shares_by_hand(results, toy):
    """The head's output through its columns and the norm, against both rows of the unembedding."""
    pair = DirectLogitAttribution(**OPTIONS).pairs(toy, Task.load("country-capital"))[0]
    names = ["blocks.2.attn.hook_z", "blocks.*.hook_resid_post"]
    logits, cache = toy.run_with_cache(pair.clean, names_filter=names)
    ids = [toy.to_first_token(t) for t in (pair.answer, pair.other)]
    norm = toy.hf_model.model.text_model.norm
    end = cache["resid_post", toy.cfg.n_layers - 1][0, -1]
    scale = (end.square().mean() + norm.variance_epsilon).sqrt()
    direction = (toy.W_U[:, ids[0]] - toy.W_U[:, ids[1]]) * norm.weight / scale
    added = cache["z", 2][0, -1, 3] @ toy.W_O[2, 3]
    share = float(added @ direction / (logits[0, -1, ids[0]] - logits[0, -1, ids[1]]))
    both = [toy.decompose(pair.clean, token=t) for t in (pair.answer, pair.other)]
    found = (both[0] - both[1]).heads().sel(layer=2, head=3).values / float(
        (both[0] - both[1]).values.sum()
    )
    assert float(found) == pytest.approx(share, rel=1e-3)
    assert torch.isfinite(torch.tensor(results["DirectLogitAttribution"].table["share"])).all()


def test_blocks_without_heads_keep_their_numbers():
    """Of convolutions and attention in turn, a head is said to be in its own block."""
    changes = {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}
    vlm = HookedVLM(tiny.randomize(Lfm2ForCausalLM(tiny_config("lfm2", changes))))
    ids = [torch.tensor([one]) for one in ([5, 6, 7, 8], [5, 16, 7, 8], [5, 26, 7, 8])]
    prompts = [vlm.as_prompt({"input_ids": one}) for one in ids]
    pairs = Pairs((Pair(prompts[0], prompts[1], 20, 40), Pair(prompts[2], prompts[1], 20, 40)))

    class Given(PairPatching):
        def drawn(self, vlm):
            return {"given": pairs}, ()

    table = Given().measure(vlm).table
    assert table["layer"].tolist() == [1] * 4 + [3] * 4
    first, name = pairs[0], "blocks.3.attn.hook_z"
    clean, z = vlm.run_with_cache(first.clean, names_filter=name)
    corrupt = vlm.run(first.corrupt)

    def put(current, hook):
        current[0, -1, 2] = z[name][0, -1, 2]

    patched = vlm.run_with_hooks(first.corrupt, fwd_hooks=[(name, put)])
    ends = [float(x[0, -1, 20] - x[0, -1, 40]) for x in (patched, clean, corrupt)]
    share = (ends[0] - ends[2]) / (ends[1] - ends[2])
    found = Given().shares(vlm, pairs)
    assert np.isnan(found[:, [0, 2]]).all() and found[0, 3, 2] == pytest.approx(share, rel=1e-4)
    estimated = AttributionPatching().shares(vlm, pairs)
    assert np.isnan(estimated[:, [0, 2]]).all() and not np.isnan(estimated[:, [1, 3]]).any()


def test_few_edges_do_the_task_on_pairs_that_they_were_not_found_on(toy, tmp_path):
    recipe = CircuitFaithfulness(tasks="country-capital", n_pairs=4, n_examples=0, sizes=(20, 100))
    result = recipe.run(toy, progress=False)
    small, large = result.table.itertuples()
    assert large.faithfulness > 0.8 > small.faithfulness > 0.2
    assert abs(large[-1]) < 0.1  # as many edges drawn at random
    assert Result.load(result.save(tmp_path / "circuit")) == result
    assert set(result.plots()) == {"faithfulness"}


def test_what_does_not_fit_is_told(toy):
    with pytest.raises(RecipeError, match="'gradient' or 'ig'"):
        AttributionPatching(method="taylor", **OPTIONS).run(toy, progress=False)
    with pytest.raises(RecipeError, match="numbers of edges"):
        CircuitFaithfulness(sizes=(), tasks="country-capital").run(toy, progress=False)
    with pytest.raises(RecipeError, match="the least is 2"):  # one half would have none
        CircuitFaithfulness(tasks="country-capital", n_pairs=1).run(toy, progress=False)
    with pytest.raises(RecipeError, match="the least is 1"):
        PairPatching(tasks="country-capital", n_pairs=0).run(toy, progress=False)
