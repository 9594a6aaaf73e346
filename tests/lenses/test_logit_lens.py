"""The logit lens against norm and unembedding by hand."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch

from vlm_lens import Ablate, All, Generated, HookedVLM, Images, Last, LogitLens
from vlm_lens.errors import ModelError, PointError, PositionError, PromptError, VLMLensError
from vlm_lens.lenses import LensError


@pytest.fixture
def prompt(vlm):
    pictures = [tiny.noise_picture(i) for i in range(2)]
    return vlm.prompt(["Q:<image>\nA:red\n\nQ:<image>\nA:", "Q:Greece\nA:"], pictures)


@torch.no_grad()
def by_hand(vlm, prompt, point):
    """lm_head(norm(h)) with the norm's formula written out."""
    hidden = tiny.plain_read(vlm.hf_model, prompt.inputs, [point])[point].double()
    norm, _ = tiny.where(vlm.hf_model, "ln_final.hook_normalized")
    scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    return (hidden * scale * norm.weight.double()) @ vlm.hf_model.lm_head.weight.double().T


def test_each_layer_is_normed_by_itself_and_unembedded(vlm, prompt):
    tokens = (7, 30)
    result = LogitLens(k=5, tokens=tokens, embedding=True).run(vlm, prompt)
    assert result.points == ("hook_merged", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    for layer, point in enumerate(result.points):
        probs = by_hand(vlm, prompt, point).softmax(-1)
        for row, layout in zip(result.rows, prompt.layouts, strict=True):
            mine = probs[layout.row, list(row.positions)]
            assert row.positions == tuple(range(layout.start, len(layout)))
            top = mine.topk(5)
            torch.testing.assert_close(
                row.top_probs[layer].double(), top.values, rtol=1e-4, atol=1e-6
            )
            assert (row.top_ids[layer] == top.indices).float().mean() > 0.99
            torch.testing.assert_close(
                row.token_probs[layer].double(), mine[:, tokens], rtol=1e-4, atol=1e-6
            )
            ranks = torch.stack([(mine > mine[:, [t]]).sum(-1) for t in tokens], -1)
            assert (row.token_ranks[layer] - ranks).abs().max() <= 1


def test_the_last_layer_is_the_model_itself(vlm, prompt):
    result = LogitLens(k=3).run(vlm, prompt)
    probs = vlm.run(prompt).softmax(-1)
    for row in result.rows:
        top = probs[row.layout.row, list(row.positions)].topk(3)
        assert torch.equal(row.top_ids[-1], top.indices)
        torch.testing.assert_close(row.top_probs[-1], top.values, rtol=1e-5, atol=1e-7)


def test_the_final_norms_weight_counts(vlm):
    """Decoding without the norm's weight gives something else on a model where it is not 1."""
    prompt = vlm.prompt("Q:Greece\nA:")
    twin = copy.deepcopy(vlm.hf_model)
    norm, _ = tiny.where(twin, "ln_final.hook_normalized")
    with torch.no_grad():
        norm.weight.fill_(1)
    mine = LogitLens(at=Last()).run(vlm, prompt).rows[0].top_probs[0]
    other = LogitLens(at=Last()).run(HookedVLM(twin), prompt.inputs).rows[0].top_probs[0]
    assert (mine - other).abs().max() > 1e-3


def test_works_on_a_language_model(lm):
    prompt = lm.prompt("Q:Greece\nA:")
    result = LogitLens(at=Last(), k=4).run(lm, prompt)
    top = lm.run(prompt)[0, -1].softmax(-1).topk(4)
    assert result.rows[0].top_ids[-1, 0].tolist() == top.indices.tolist()
    expected = [
        (lm.tokenizer.convert_ids_to_tokens(int(i)), p) for i, p in zip(*top[::-1], strict=True)
    ]
    assert [p for _, p in result.top(-1)] == pytest.approx([float(p) for _, p in expected])


def test_interventions_before_the_norm_are_decoded(vlm):
    prompt = vlm.prompt("Q:Greece\nA:")
    patch = Ablate("blocks.0.hook_mlp_out", at=All())
    result = LogitLens(at=Last()).run(vlm, prompt, interventions=patch)
    top = vlm.run(prompt, interventions=patch)[0, -1].argmax()
    assert result.rows[0].top_ids[-1, 0, 0] == top


def test_refuses_what_it_cannot_reproduce(vlm, prompt):
    for point in ("ln_final.hook_normalized", "hook_logits"):
        with pytest.raises(LensError, match="does not reproduce"):
            LogitLens().run(vlm, prompt, interventions=Ablate(point, at=All()))


def test_a_softcap_that_the_family_does_not_describe_is_noticed(llama):
    model = copy.deepcopy(llama.hf_model)
    model.lm_head.register_forward_hook(lambda m, a, out: out)
    plain = model.forward
    model.forward = lambda *a, **k: _squash(plain(*a, **k))
    vlm = HookedVLM(model, llama.processor)
    with pytest.raises(ModelError, match="not what its output layer gives"):
        LogitLens().run(vlm, "Q:Greece")


def _squash(output):
    output.logits = output.logits.tanh()
    return output


def test_refused_before_any_compute(vlm, prompt, no_forward):
    no_forward(vlm)
    with pytest.raises(PromptError, match="<image>"):
        LogitLens().run(vlm, "Q:<image>\nA:")
    with pytest.raises(PointError, match="the lens decodes"):
        LogitLens("blocks.0.mlp.hook_post").run(vlm, prompt)
    with pytest.raises(PointError, match="the lens decodes"):
        LogitLens("vision.hook_out").run(vlm, prompt)
    with pytest.raises(PositionError, match="no position"):
        LogitLens(at=Generated()).run(vlm, prompt)
    with pytest.raises(PositionError, match="no picture"):
        LogitLens(at=Images()).run(vlm, prompt)
    with pytest.raises(PromptError, match=r"not one; its first is .*, id \d+"):
        LogitLens(tokens="Q:Greece and more").run(vlm, prompt)
    assert issubclass(LensError, VLMLensError)


def test_layers_are_blocks_embed_or_points(clip):
    prompt = clip.prompt("Q:Greece\nA:")
    seen = LogitLens(at=Last(), k=2, embedding=True).run(clip, prompt)
    assert list(seen.to_dataframe()["layer"]) == [lay for lay in ("embed", 0, 1) for _ in range(2)]
    assert seen.top(1) == seen.top(-1) == seen.top("blocks.1.hook_resid_post") != seen.top("embed")
    with pytest.raises(PointError, match="Layer 2 was not decoded; there are embed, 0, 1"):
        seen.top(2)
    twice = LogitLens(("blocks.0.hook_resid_*",), at=Last(), k=1).run(clip, prompt)
    assert twice.layers == twice.points and twice.top(twice.points[0])


def test_several_points_are_read_in_the_order_of_the_forward_pass(clip):
    prompt = clip.prompt("Q:Greece\nA:")
    names = ("blocks.1.hook_resid_post", "blocks.0.hook_resid_mid", "blocks.0.hook_resid_post")
    for points in (names, list(names), names[:2]):
        seen = LogitLens(points, at=Last()).run(clip, prompt)
        assert sorted(seen.points) == sorted(points)
        for point in seen.points:
            alone = LogitLens(point, at=Last()).run(clip, prompt)
            assert seen.top(point) == alone.top(point)


def test_as_a_table(clip):
    prompt = clip.prompt("Q:Greece\nA:")
    table = LogitLens(at=Last(), k=2, tokens=(9,)).run(clip, prompt).to_dataframe()
    assert len(table) == 2 * 2
    last = table[(table["layer"] == 1) & (table["rank"] == 0)].iloc[0]
    probs = clip.run(prompt)[0, -1].softmax(-1)
    assert last["prob"] == pytest.approx(float(probs.max()), rel=1e-4)
    assert last["position"] == prompt.length - 1
    column = next(c for c in table.columns if c.startswith("p("))
    assert last[column] == pytest.approx(float(probs[9]), rel=1e-4)


def test_is_a_value():
    assert LogitLens(at=3, tokens="a") == LogitLens(at=[3], tokens=("a",))
    assert hash(LogitLens()) == hash(LogitLens())
