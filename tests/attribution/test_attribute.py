"""Attribution patching against plain gradients, against exact patching, and its completeness."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from induction_case import HERE, THERE, asked, model
from pairs.pairs_of_cells import cell_pairs
from patching.pairs_of_prompts import MEASURE, TOKENS, other_lengths, same_shape

from vlm_lens import (
    All,
    AnswerProb,
    HookedVLM,
    Images,
    Last,
    LogitDiff,
    Pair,
    Rank,
    Text,
    VLMLensError,
)
from vlm_lens.attribution import Attribution, attribute, attribute_edges, rank_correlation
from vlm_lens.pairs import task_pairs
from vlm_lens.patching import Each, patch

Z, PLACES = "blocks.*.attn.hook_z", [Images(), Text(), Last()]


# ---------------------------------------------------------------------- the known circuit


@pytest.mark.parametrize("method", ["gradient", "ig"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_on_the_known_circuit_it_is_exact_patching(method, direction):
    pair = Pair(asked(0), asked(1), HERE, THERE)
    options = {"heads": "each", "at": PLACES, "direction": direction}
    found = pair.attribute(model(), Z, method=method, **options)
    exact = pair.patch(model(), Z, progress=False, **options)
    np.testing.assert_allclose(found.values, exact.values, atol=1e-5)
    assert found.axes == exact.axes
    best = found.top(1).iloc[0]
    assert (best["layer"], best["head"]) == (2, 2)
    checked = found.check(model(), k=None)
    assert "rank correlation 1.00" in repr(checked) and len(checked.exact) == found.values.size
    patches = pair.attribute(model(), "blocks.*.hook_resid_pre", at=Each(Images()), method=method)
    assert patches.top(1)["patch"][0] == (2, 1)  # b3
    assert float(patches.values.max()) == pytest.approx(1, abs=1e-3)


def test_many_pairs_have_intervals():
    pairs = cell_pairs(4)
    found = pairs.attribute(model(), Z, heads="each", at=Last(), progress=False)
    exact = pairs.patch(model(), Z, heads="each", at=Last(), progress=False)
    np.testing.assert_allclose(found.values, exact.values, atol=1e-5)
    table = found.statistics(permutations=100)
    assert tuple(table.loc[0, ["layer", "head", "mean"]]) == (2, 2, pytest.approx(1, abs=1e-4))
    assert "attribution patching" in repr(found)


def test_gradients_are_blind_where_the_model_is_saturated():
    """The tower of toy-induction asks of each color channel whether it is full, not how full."""
    pair = Pair(asked(0), asked(1), HERE, THERE)
    exact = pair.patch(model(), "vision.hook_embed", at=pair.changed, progress=False)
    assert float(exact.values.squeeze()) == pytest.approx(1, abs=1e-5)
    for direction in ("denoise", "noise"):  # the gradient at the one end, and at the other
        found = pair.attribute(model(), "vision.hook_embed", at=pair.changed, direction=direction)
        assert abs(float(found.values.squeeze())) < 1e-6
    after = pair.attribute(model(), "projector.hook_out", at=pair.changed)
    assert float(after.values.squeeze()) == pytest.approx(1, abs=1e-3)


# ---------------------------------------------------------------------- plain torch


def by_autograd(vlm, base, other, path: str, heads: slice, positions) -> float:
    """Gradient times difference at what enters a module, by a plain hook."""
    module = vlm.hf_model.get_submodule(path)
    seen = []

    def keep(m, args):
        x = args[0].detach().requires_grad_()
        seen.append(x)
        return (x, *args[1:])

    handle = module.register_forward_pre_hook(keep)
    diffs = []
    for prompt in (other, base):
        logits = vlm.hf_model(**prompt.inputs, use_cache=False).logits[0, -1]
        diffs.append(logits[TOKENS[0]] - logits[TOKENS[1]])
    handle.remove()
    (gradient,) = torch.autograd.grad(diffs[1], seen[1])
    product = (gradient * (seen[0] - seen[1]))[0].detach()
    return float((product[positions][:, heads].sum() / (diffs[0] - diffs[1])).detach())


@pytest.mark.parametrize("name", ["llava-clip", "qwen2_vl", "gemma3", "mllama"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_it_is_gradient_times_difference_by_plain_torch(name, direction, load_family):
    vlm = load_family(name)
    clean, corrupt = same_shape(vlm)
    base, other = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    positions = [len(clean.layout) - 1]
    d = vlm.cfg.d_head
    expected = by_autograd(
        vlm, base, other, "model.language_model.layers.0.self_attn.o_proj",
        slice(d, 2 * d), positions,
    )  # fmt: skip
    found = attribute(
        vlm, clean, corrupt, "blocks.0.attn.hook_z", measure=MEASURE, heads=[1], at=Last(),
        direction=direction,
    )  # fmt: skip
    assert float(found.values.squeeze()) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_positions_correspond_between_prompts_of_other_lengths(load_family):
    vlm = load_family("qwen2_vl")
    clean, corrupt = other_lengths(vlm)
    found = attribute(vlm, clean, corrupt, "hook_merged", measure=MEASURE, at=[Images(), Last()])
    exact = patch(
        vlm, clean, corrupt, "hook_merged", measure=MEASURE, at=[Images(), Last()], progress=False
    )
    assert found.axes == exact.axes == ("kind",)
    with pytest.raises(VLMLensError, match="counterpart of every position"):
        attribute(vlm, clean, corrupt, "hook_merged", measure=MEASURE, method="ig")


def test_features_are_nodes_that_add_up(load_family):
    vlm = load_family("llava-clip")
    clean, corrupt = same_shape(vlm)
    options = {"measure": MEASURE, "at": [Images(), Last()]}
    whole = attribute(vlm, clean, corrupt, "blocks.*.mlp.hook_post", **options)
    neurons = attribute(vlm, clean, corrupt, "blocks.*.mlp.hook_post", features=True, **options)
    assert neurons.axes == (*whole.axes, "feature") and neurons.shape[-1] == vlm.cfg.d_mlp
    np.testing.assert_allclose(neurons.values.sum("feature"), whole.values, rtol=1e-9)
    with pytest.raises(VLMLensError, match="before sel, sum or save"):
        neurons.check(vlm)


def test_small_steps_of_exact_patching_are_its_slope(load_family):
    """Along a pattern, whose points are computed on demand."""
    vlm = load_family("llava-clip")
    clean, corrupt = same_shape(vlm)
    name = "blocks.1.attn.hook_pattern"
    found = attribute(vlm, clean, corrupt, name, measure=MEASURE, heads="each", at=Last())
    there = vlm.run_with_cache(clean, names_filter=name)[1][name]

    def moved(share: float, head: int) -> float:
        def write(x, hook):
            x[0, head, -1] += share * (there[0, head, -1] - x[0, head, -1])
            return x

        logits = vlm.run_with_hooks(corrupt, fwd_hooks=[(name, write)])[0, -1].double()
        return float(logits[TOKENS[0]] - logits[TOKENS[1]])

    ends = [tiny.plain_logits(vlm.hf_model, p.inputs)[0, -1].double() for p in (clean, corrupt)]
    a, b = (float(x[TOKENS[0]] - x[TOKENS[1]]) for x in ends)
    for head in range(vlm.cfg.n_heads):
        slope = (moved(0.05, head) - moved(-0.05, head)) / 0.1 / (a - b)
        assert float(found.values[head]) == pytest.approx(slope, rel=0.05, abs=2e-3)


# ---------------------------------------------------------------------- completeness


@pytest.mark.parametrize("name", ["qwen3_vl", "mllama", "gemma3", "idefics2"])
def test_the_line_adds_up_through_deep_stack_and_cross_attention(name, load_family):
    vlm = load_family(name)
    clean, corrupt = same_shape(vlm)
    found = attribute(
        vlm, clean, corrupt, "hook_merged", measure=MEASURE, method="ig", steps=24, at=[Text()]
    )
    gap = float(found.about["the line is off by"].split()[0])
    assert gap < 0.02  # random weights are less smooth than trained ones


@pytest.mark.parametrize("name", ["florence2", "t5gemma2"])
def test_the_line_of_an_encoder_decoder_begins_at_what_its_encoder_reads(name, load_family):
    vlm = load_family(name)
    clean, corrupt = (vlm.prompt("<image>Q:A", [tiny.noise_picture(i)]) for i in (0, 1))
    found = attribute(
        vlm, clean, corrupt, "encoder.hook_merged", at=[All()], measure=MEASURE, method="ig",
        steps=64,
    )  # fmt: skip
    assert float(found.values.sum()) == pytest.approx(1, abs=0.05)


def test_a_line_that_does_not_add_up_warns(load_family):
    vlm = load_family("mistral3")
    clean, corrupt = (vlm.prompt("Q:<image>\nA:", [tiny.noise_picture(i)]) for i in (0, 1))
    options = {"measure": MEASURE, "method": "ig", "steps": 1}
    for ask in (
        lambda: attribute(vlm, clean, corrupt, "hook_merged", **options),
        lambda: attribute_edges(vlm, clean, corrupt, **options),
    ):
        with pytest.warns(UserWarning, match="the two prompts, and are off by .* more steps"):
            ask()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toy-llava", "toy-idefics2", "toy-fuyu"])
def test_integrated_gradients_are_complete_on_the_organisms(name):
    vlm = HookedVLM.from_pretrained(name)
    pairs = task_pairs(vlm, "country-capital", 2, instruction=True, seed=0)
    for pair in pairs:
        total = pair.attribute(vlm, "hook_merged", method="ig", steps=48)
        assert float(total.values) == pytest.approx(1, abs=1e-3)
    if name == "toy-llava":  # of the tower, whose line begins at pixels and is less smooth
        patches = pairs[1].attribute(vlm, "vision.hook_embed", method="ig", steps=96)
        assert float(patches.values) == pytest.approx(1, abs=1e-3)
    heads = pairs.attribute(vlm, Z, heads="each", at=PLACES, progress=False)
    exact = pairs.patch(vlm, Z, heads="each", at=PLACES, progress=False)
    for one, two in zip(heads.values.to_numpy(), exact.values.to_numpy(), strict=True):
        assert rank_correlation(one.ravel(), two.ravel()) > 0.6


# ---------------------------------------------------------------------- cost, refusals, files


def test_all_heads_and_positions_cost_two_forwards_and_a_backward(load_family, monkeypatch):
    vlm = load_family("llava-clip")
    clean, corrupt = same_shape(vlm)
    calls, forward = [], vlm.hf_model.forward

    def counted(*args, **kwargs):
        calls.append(torch.is_grad_enabled())
        return forward(*args, **kwargs)

    monkeypatch.setattr(vlm.hf_model, "forward", counted)
    found = attribute(vlm, clean, corrupt, Z, measure=MEASURE, heads="each", at="each")
    assert sorted(calls) == [False, True]  # 1 + 3, a backward counted as two forwards
    assert "spots" not in vars(found.asked.plan)  # no object for each of the scores


def test_what_does_not_fit_is_told(load_family, tmp_path):
    vlm = load_family("llava-clip")
    clean, corrupt = same_shape(vlm)
    for options, words in (
        ({"measure": Rank(5)}, "no gradient"),
        ({"measure": AnswerProb(5)}, "no gradient"),
        ({"method": "taylor"}, "'gradient' or 'ig'"),
        ({"direction": "both"}, "'denoise' or 'noise'"),
        ({"method": "ig", "steps": 0}, "at least 1"),
        ({"points": "blocks.*"}, "kinds"),
    ):
        given = {"points": Z, "measure": MEASURE, **options}
        with pytest.raises(VLMLensError, match=words):
            attribute(vlm, clean, corrupt, given.pop("points"), **given)
    with pytest.raises(VLMLensError, match="no difference to share out"):
        attribute(vlm, clean, clean, Z, measure=MEASURE)
    found = attribute(vlm, clean, corrupt, Z, measure=LogitDiff(*TOKENS), heads="each", at=Last())
    again = Attribution.load(found.save(tmp_path / "found"))
    np.testing.assert_array_equal(again.values, found.values)
    with pytest.raises(VLMLensError, match="before sel, sum or save"):
        again.check(vlm)
    assert "3 best by exact patching" in repr(found.check(vlm, k=3))
