from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from families import (
    tiny_gemma3,
    tiny_idefics2,
    tiny_internvl,
    tiny_llava_next,
    tiny_mllama,
    tiny_qwen2_vl,
)
from PIL import Image

from vlm_lens import HookedVLM, Last, Patches, Text, VLMLensError
from vlm_lens.attention import (
    attention,
    attention_by_row,
    attention_rollout,
    entropy,
    on_patches,
)
from vlm_lens.layout.positions import as_position
from vlm_lens.reading.resampled import patch_weights

PICTURES = [Image.effect_noise((48, 36), 90).convert("RGB"), Image.new("RGB", (40, 40), "teal")]
FAMILIES = {
    "gemma3": tiny_gemma3.save, "idefics2": tiny_idefics2.save, "qwen2-vl": tiny_qwen2_vl.save,
    "mllama": tiny_mllama.save, "granite": partial(tiny_llava_next.save, text="granite"),
    "gpt-oss": partial(tiny_internvl.save, text="gpt_oss"),
}  # fmt: skip


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory, load):
    made = {"clip": load("clip-llama")}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            FAMILIES[name](folder=folder)
            made[name] = HookedVLM.from_pretrained(folder)
        return made[name]

    return get


def eager_patterns(vlm, prompt):
    """Every block's pattern as plain transformers gives it, `[block, head, query, key]`."""
    before = vlm.hf_model.config._attn_implementation
    vlm.hf_model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = vlm.hf_model(**prompt.inputs, output_attentions=True)
    finally:
        vlm.hf_model.set_attn_implementation(before)
    return [a[0].float() for a in out.attentions]


@pytest.mark.parametrize("name", ["clip", "gemma3", "idefics2", "qwen2-vl"])
@pytest.mark.parametrize("at", [Last(), Text(), 3])
def test_rows_are_those_of_the_eager_model(wrapped, name, at):
    vlm = wrapped(name)
    prompt = vlm.prompt("<image> or <image>\nA:", images=PICTURES)
    expected = torch.stack(eager_patterns(vlm, prompt))
    found = attention(vlm, prompt, at=at)
    queries = [p for _, p in as_position(at).resolve(prompt.layout)]
    values = found.values.to_numpy()
    values = values[:, :, None] if len(queries) == 1 else values
    np.testing.assert_allclose(values, expected[:, :, queries].numpy(), atol=2e-6)
    np.testing.assert_allclose(found.sum("position").values, 1, atol=1e-5)
    kinds = found.by_kind()
    for k in kinds.values["kind"].to_numpy():
        mine = [i for i, kind in enumerate(prompt.layout.kinds) if str(kind) == k]
        np.testing.assert_allclose(
            np.moveaxis(kinds.sel(kind=k).values.to_numpy().reshape(*values.shape[:3]), 2, 2),
            expected[:, :, queries][..., mine].sum(-1).numpy(), atol=3e-6,
        )  # fmt: skip


def test_blocks_and_heads_can_be_chosen(wrapped):
    vlm = wrapped("clip")
    prompt = vlm.prompt("<image>\nA:", images=PICTURES[:1])
    whole, some = attention(vlm, prompt), attention(vlm, prompt, layers=[-1, 0], heads=1)
    last = vlm.cfg.n_layers - 1
    assert some.axes == ("layer", "head", "position") and some.shape[:2] == (2, 1)
    np.testing.assert_allclose(
        some.values.to_numpy(), whole.sel(layer=[last, 0], head=[1]).values.to_numpy(), atol=1e-6
    )


def test_the_tower_s_rows(wrapped):
    vlm = wrapped("clip")
    prompt = vlm.prompt("<image> or <image>\nA:", images=PICTURES)
    names = [f"vision.blocks.{n}.attn.hook_pattern" for n in range(vlm.cfg.vision.n_layers)]
    _, cache = vlm.run_with_cache(prompt, names_filter=names)
    query = prompt.layout.image[1].vision.grid().patch(0, 1)
    found = attention(vlm, prompt, at=Patches(1, rows=(0, 1), cols=(1, 2)), part="vision")
    assert found.space == "vision"
    for layer, name in enumerate(names):
        np.testing.assert_allclose(
            found.sel(layer=layer).values, cache[name][1, :, query].numpy(), atol=1e-6
        )
    assert set(found.by_kind().values["kind"].to_numpy()) == {"image 1"}


def test_attention_from_text_to_pictures_of_another_sequence(wrapped):
    vlm = wrapped("mllama")
    prompt = vlm.prompt("<image>\nA:", images=PICTURES[:1])
    found = attention(vlm, prompt, part="cross")
    crossing = found.values["layer"].to_numpy().tolist()
    assert crossing == list(vlm.hf_model.config.text_config.cross_attention_layers)
    for layer in crossing:
        name = f"blocks.{layer}.attn.hook_pattern"
        _, cache = vlm.run_with_cache(prompt, names_filter=name)
        np.testing.assert_allclose(
            found.sel(layer=layer).values, cache[name][0, :, -1].numpy(), atol=1e-6
        )
    assert not set(crossing) & set(attention(vlm, prompt).values["layer"].to_numpy().tolist())


@pytest.mark.parametrize("weigh", ["value", "output"])
def test_weights_are_the_norms_of_what_is_moved(wrapped, weigh):
    vlm = wrapped("clip")
    prompt = vlm.prompt("<image>\nA:", images=PICTURES[:1])
    found = attention(vlm, prompt, weigh=weigh, layers=1)
    block = vlm.hf_model.model.language_model.layers[1].self_attn
    _, cache = vlm.run_with_cache(
        prompt, names_filter=["blocks.1.attn.hook_pattern", "blocks.1.ln1.hook_normalized"]
    )
    pattern = cache["blocks.1.attn.hook_pattern"][0, :, -1]
    v = block.v_proj(cache["blocks.1.ln1.hook_normalized"][0])
    groups = vlm.cfg.n_heads // vlm.cfg.n_key_value_heads
    d = vlm.cfg.d_head
    for head in range(vlm.cfg.n_heads):
        mine = v[:, (head // groups) * d : (head // groups + 1) * d]
        if weigh == "output":
            mine = mine @ block.o_proj.weight[:, head * d : (head + 1) * d].T
        expected = pattern[head] * mine.norm(dim=-1)
        np.testing.assert_allclose(
            found.sel(layer=1, head=head).values, expected.detach().numpy(), atol=1e-6
        )


def _by_a_gate(model, block, given):
    return given * block.cross_attn_attn_gate.tanh()


def _by_a_multiplier(model, block, given):
    return given * model.config.text_config.residual_multiplier


def _through_a_norm(model, block, given):
    norm, whole = block.post_attention_layernorm, given.sum((0, 1))  # over heads and keys
    scale = whole.pow(2).mean().add(norm.eps).sqrt()
    return given * (1 + norm.weight) / scale


@pytest.mark.parametrize(
    ("name", "part", "after"),
    [("mllama", "cross", _by_a_gate), ("granite", "language", _by_a_multiplier),
     ("gemma3", "language", _through_a_norm)],
)  # fmt: skip
def test_what_is_moved_is_what_is_added(wrapped, name, part, after):
    """Of each key by each head, behind a gate, a multiplier or a norm."""
    vlm = wrapped(name)
    prompt = vlm.prompt("<image>\nA:", images=PICTURES[:1])
    found = attention(vlm, prompt, weigh="output", part=part)
    layer = int(found.values["layer"].to_numpy()[-1])
    block = vlm.hf_model.model.language_model.layers[layer]
    o_proj = block.cross_attn.o_proj if part == "cross" else block.self_attn.o_proj
    names = [f"blocks.{layer}.attn.hook_{kind}" for kind in ("pattern", "v")]
    _, cache = vlm.run_with_cache(prompt, names_filter=names)
    pattern, v = cache[names[0]][0, :, -1], cache[names[1]][0]  # [head, key], [key, head, d]
    v = v.repeat_interleave(len(pattern) // v.shape[1], 1)
    weight = o_proj.weight.T.unflatten(0, (len(pattern), -1))  # [head, d, d_model]
    given = torch.einsum("hk,khd,hdm->hkm", pattern, v, weight)
    expected = after(vlm.hf_model, block, given).norm(dim=-1).detach().numpy()
    got = found.sel(layer=layer).values
    np.testing.assert_allclose(got, expected[:, got["position"].to_numpy()], rtol=1e-4, atol=1e-6)


def test_a_sink_of_no_position_moves_nothing(wrapped):
    vlm = wrapped("gpt-oss")
    prompt = vlm.prompt("<image>\nA:", images=PICTURES[:1])
    names = ["blocks.1.attn.hook_pattern", "blocks.1.attn.hook_v"]
    _, cache = vlm.run_with_cache(prompt, names_filter=names)
    pattern, v = cache[names[0]][0, :, -1], cache[names[1]][0]
    assert pattern.shape[-1] == len(prompt.layout) + 1
    expected = pattern[:, :-1] * v.norm(dim=-1).T.repeat_interleave(len(pattern) // v.shape[1], 0)
    found = attention(vlm, prompt, weigh="value", layers=1)
    np.testing.assert_allclose(found.values.to_numpy()[0], expected.numpy(), rtol=1e-4)
    rolled = attention_rollout(vlm, prompt, at=Last(), layers=[1], part="language")
    mixed = pattern[:, :-1].mean(0) / 2 + torch.eye(len(prompt.layout))[-1] / 2
    np.testing.assert_allclose(rolled.values.to_numpy(), mixed.numpy(), atol=1e-6)


def test_values_of_the_tower_are_those_of_the_picture_asked(wrapped):
    """The norms that weigh a picture's attention are of its own row of the tower."""
    vlm = wrapped("clip")
    prompt = vlm.prompt("<image> or <image>\nA:", images=PICTURES)
    names = ["vision.blocks.1.attn.hook_pattern", "vision.blocks.1.attn.hook_v"]
    _, cache = vlm.run_with_cache(prompt, names_filter=names)
    for image in (0, 1):
        at = Patches(image, rows=1, cols=1)
        found = attention(vlm, prompt, at=at, part="vision", weigh="value", layers=1)
        query = prompt.layout.image[image].vision.grid().patch(1, 1)
        pattern, v = (cache[name][image] for name in names)
        expected = pattern[:, query] * v.norm(dim=-1).T
        np.testing.assert_allclose(found.values.to_numpy()[0], expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["clip", "qwen2-vl"])
def test_a_batch_is_its_rows(wrapped, name):
    vlm = wrapped(name)
    texts = ["<image>\nQ:What is the capital?\nA:", "<image>\nA:"]
    pictures = [[p] for p in PICTURES]
    batch = vlm.prompt(texts, images=pictures)
    alone = [vlm.prompt(t, images=p) for t, p in zip(texts, pictures, strict=True)]
    cases = [{"weigh": "output"}, {"layers": -1, "heads": 0}]
    cases += [{"part": "vision", "at": Patches(0, rows=0, cols=1)}]
    for options in cases:
        for found, prompt in zip(attention_by_row(vlm, batch, **options), alone, strict=True):
            expected = attention(vlm, prompt, **options)
            np.testing.assert_allclose(
                found.values.to_numpy(), expected.values.to_numpy(), atol=1e-5
            )
            mine, theirs = found.places(), expected.places()
            assert [(p.token, p.patch) for p in mine] == [(p.token, p.patch) for p in theirs]
            assert found.pictures == expected.pictures


def test_latents_are_spread_over_the_patches_that_they_read(wrapped):
    vlm = wrapped("idefics2")
    prompt = vlm.prompt("<image> or <image>\nA:", images=PICTURES)
    _, cache = vlm.run_with_cache(prompt, names_filter="projector.*hook_pattern")
    maps = {i: patch_weights(cache, i) for i in range(2)}
    found = attention(vlm, prompt, layers=0)
    spread = on_patches(found, maps)
    assert spread.space == "vision" and any(p.patch for p in spread.places())
    image = prompt.layout.image[1]
    values = found.values.to_numpy()[0][:, list(image.positions)]
    expected = np.einsum("hl,lrc->hrc", values, maps[1].numpy()).reshape(len(values), -1)
    grid = image.vision.grid()
    keys = [(p.row, p.position) for p in spread.places()]
    columns = [keys.index((grid.row, p)) for p in grid.positions]
    np.testing.assert_allclose(spread.values.to_numpy()[0][:, columns], expected, atol=1e-6)
    assert "data-i" in spread.over_picture()._repr_html_()
    with pytest.raises(VLMLensError, match="Image 1 has no map"):
        on_patches(found, {0: maps[0]})


def test_entropy_is_that_of_the_row(wrapped):
    vlm = wrapped("clip")
    prompt = vlm.prompt("<image>\nA:", images=PICTURES[:1])
    found = attention(vlm, prompt)
    rows = found.values.to_numpy().astype("float64")
    expected = -np.where(rows > 0, rows * np.log(np.where(rows > 0, rows, 1)), 0).sum(-1)
    np.testing.assert_allclose(entropy(found).values, expected, rtol=1e-4)
    mine = rows[..., list(prompt.layout.image[0].positions)]
    mine = mine / mine.sum(-1, keepdims=True)
    np.testing.assert_allclose(
        entropy(found, within="image 0").values, -(mine * np.log(mine)).sum(-1), rtol=1e-4
    )
    with pytest.raises(VLMLensError, match="kind 'image 4'"):
        entropy(found, within="image 4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layers": 99},
            r"block 99 was asked; language attention of this model is in blocks 0\.\.",
        ),
        ({"layers": []}, "no block was asked"),
        ({"heads": [0, 44]}, r"head 44 was asked; language attention has heads 0\.\."),
        ({"part": "tower"}, "part is one of language, vision, encoder, cross"),
        ({"part": "cross"}, "no blocks of cross-attention: its pictures stand in the text"),
        ({"part": "vision"}, "Say whose attention in the tower"),
        ({"weigh": "norm"}, "weigh is one of pattern, value, output"),
        ({"at": 5000}, "5000"),
    ],
)
def test_what_cannot_be_read_is_refused_before_any_run(wrapped, no_forward, options, message):
    vlm = wrapped("clip")
    prompt = vlm.prompt("<image>\nA:", images=PICTURES[:1])
    no_forward(vlm)
    with pytest.raises(VLMLensError, match=message):
        attention(vlm, prompt, **options)


def test_a_batch_and_a_model_without_tower_are_refused(wrapped, load):
    vlm = wrapped("clip")
    with pytest.raises(VLMLensError, match="batch of 2 rows: attention_by_row"):
        attention(vlm, ["a", "b c"])
    with pytest.raises(VLMLensError, match="no vision tower"):
        attention(load("llama"), "Q:Peru\nA:", at=0, part="vision")


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["clip", "gemma3", "qwen2-vl", "idefics2"])
def test_only_the_rows_asked_for_are_computed(wrapped, name, implementation, monkeypatch):
    vlm = wrapped(name)
    prompt = vlm.prompt("<image>\nWhat is it?\nA:", images=PICTURES[:1])
    asked = [2, prompt.length - 1]
    names = ["blocks.*.attn.hook_pattern", "blocks.*.attn.hook_attn_scores"]
    before = vlm.hf_model.config._attn_implementation
    vlm.hf_model.set_attn_implementation(implementation)
    try:
        _, whole = vlm.run_with_cache(prompt, names_filter=names)
        shown = []
        from vlm_lens.engine.attention import _SoftmaxWatch

        show = _SoftmaxWatch._show

        def watched(self, stage, x):
            shown.append(x.shape[2])
            return show(self, stage, x)

        monkeypatch.setattr(_SoftmaxWatch, "_show", watched)
        logits, some = vlm.run_with_cache(prompt, names_filter=names, positions=asked)
    finally:
        vlm.hf_model.set_attn_implementation(before)
    if implementation == "sdpa":
        assert set(shown) == {2}
        assert torch.equal(logits, vlm.run(prompt))
    for point in whole:
        expected = whole[point][:, :, asked]
        finite = torch.isfinite(expected) & (expected > -1e30)
        torch.testing.assert_close(some[point][finite], expected[finite], atol=2e-6, rtol=2e-5)


def test_rows_of_a_padded_batch_are_those_of_each_row_alone(wrapped):
    vlm = wrapped("clip")
    texts = ["<image>\nQ:What is the capital?\nA:", "<image>\nA:"]
    name = "blocks.1.attn.hook_pattern"
    batch = vlm.prompt(texts, images=[[p] for p in PICTURES])
    _, cache = vlm.run_with_cache(batch, names_filter=name, positions=Last())
    for row, (text, picture) in enumerate(zip(texts, PICTURES, strict=True)):
        alone = attention(vlm, vlm.prompt(text, images=[picture]), layers=1)
        n = alone.shape[-1]
        np.testing.assert_allclose(
            cache[name][row, :, 0, -n:].numpy(), alone.values.to_numpy()[0], atol=2e-6
        )


def test_a_write_beside_a_read_still_acts(wrapped):
    vlm = wrapped("clip")
    prompt = vlm.prompt("<image>\nA:", images=PICTURES[:1])
    name = "blocks.1.attn.hook_pattern"
    from vlm_lens import ActivationPatch

    width = prompt.length
    value = torch.zeros(width)
    value[0] = 1.0
    edit = ActivationPatch(name, at=Last(), value=value)
    found = attention(vlm, prompt, layers=1, interventions=edit)
    np.testing.assert_allclose(found.values.to_numpy()[0], value.expand(4, -1)[: found.shape[1]])
    plain = vlm.run(prompt)
    assert not torch.allclose(vlm.run(prompt, interventions=edit), plain)
