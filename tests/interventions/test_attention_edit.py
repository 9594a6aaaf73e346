"""Attention weights set and scaled, against added masks and against loops over a pattern."""

from __future__ import annotations

import copy
import math

import pytest
import tiny
import torch
from edge_case import by_mask, edges, own_layers, prompts

from vlm_lens import (
    At,
    AttentionEdit,
    AttentionKnockout,
    Find,
    Generated,
    HookedVLM,
    Images,
    Last,
    Patches,
    Scale,
    Span,
)
from vlm_lens.errors import InterventionError, PointError

QUERIES, KEYS = Last() + Find("A", -1), Span("Q:", 0)


def by_pattern(vlm, prompt, prefix, layer, cells, change):
    """Logits with a block's heads computed anew from its pattern, some rows of which are changed.

    Args:
        vlm: The model.
        prompt: The prompt.
        prefix: `""` or `"vision."`.
        layer: The block.
        cells: (row, query) -> its keys.
        change: `(weights of a row, keys) -> other weights`.
    """
    names = {n: f"{prefix}blocks.{layer}.attn.hook_{n}" for n in ("pattern", "v", "z")}
    _, cache = vlm.run_with_cache(prompt, names_filter=[names["pattern"], names["v"]])
    pattern, v = cache[names["pattern"]].clone(), cache[names["v"]]
    for (row, query), keys in cells.items():
        for head in range(pattern.shape[1]):
            pattern[row, head, query] = change(pattern[row, head, query].clone(), keys)
    v = v.repeat_interleave(pattern.shape[1] // v.shape[2], 2)
    z = torch.einsum("bhqk,bkhd->bqhd", pattern, v)

    def write(x, hook):
        x = x.clone()
        for row, query in cells:
            x[row, query] = z[row, query]
        return x

    return vlm.run_with_hooks(prompt, fwd_hooks=[(names["z"], write)])


def rescaled(factor, renormalise):
    def change(p, keys):
        p[keys] *= factor
        return p / p.sum() if renormalise else p

    return change


def given(value, renormalise):
    def change(p, keys):
        seen = [k for k in keys if p[k] > 0]
        rest = 1 - p[seen].sum()
        others = [k for k in range(len(p)) if k not in seen]
        if renormalise and seen:
            p[others] *= (1 - value * len(seen)) / rest
        p[seen] = value
        return p

    return change


def test_scaling_adds_the_logarithm_to_the_scores(pair):
    vlm, eager = pair
    layers, heads = own_layers(vlm)[:2], (0, 3)
    for prompt in prompts(vlm):
        cuts = edges(prompt, QUERIES, KEYS)
        edit = AttentionEdit(QUERIES, KEYS, scale=0.25, layers=layers, heads=heads)
        found = vlm.run(prompt, interventions=edit)
        expected = by_mask(vlm, eager, prompt.inputs, cuts, layers, heads, math.log(0.25))
        for row, layout in enumerate(prompt.layouts):
            real = slice(layout.start, None)
            torch.testing.assert_close(found[row, real], expected[row, real], rtol=1e-4, atol=1e-4)
        swept = vlm.sweep(prompt, [edit, edit + edit], measure="logits", progress=False)
        logits = swept.stack("logits")[:, 0].unflatten(0, (2, len(prompt)))
        torch.testing.assert_close(logits[0], found[:, -1], rtol=1e-4, atol=1e-4)
        twice = AttentionEdit(QUERIES, KEYS, scale=0.0625, layers=layers, heads=heads)
        found = vlm.run(prompt, interventions=twice)
        torch.testing.assert_close(logits[1], found[:, -1], rtol=1e-4, atol=1e-4)
        none = AttentionEdit(QUERIES, KEYS, scale=0, layers=layers, heads=heads)
        cut = AttentionKnockout(QUERIES, KEYS, layers=layers, heads=heads)
        torch.testing.assert_close(
            vlm.run(prompt, interventions=none)[:, -1],
            vlm.run(prompt, interventions=cut)[:, -1], rtol=1e-4, atol=1e-4,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "change"),
    [
        ({"value": 0.3}, given(0.3, True)),
        ({"value": 0.3, "renormalise": False}, given(0.3, False)),
        ({"scale": 3, "renormalise": False}, rescaled(3, False)),
        ({"scale": 3}, rescaled(3, True)),
        (None, rescaled(0, False)),
    ],
)
def test_rows_of_the_pattern_are_what_the_formula_says(pair, edit, change):
    vlm, _ = pair
    layer = own_layers(vlm)[-1]
    for prompt in prompts(vlm):
        cells: dict = {}
        for row, query, key in edges(prompt, QUERIES, KEYS):
            cells.setdefault((row, query), []).append(key)
        expected = by_pattern(vlm, prompt, "", layer, cells, change)
        if edit is None:
            made = AttentionKnockout(QUERIES, KEYS, layers=layer, renormalise=False)
        else:
            made = AttentionEdit(QUERIES, KEYS, layers=layer, **edit)
        found = vlm.run(prompt, interventions=made)
        torch.testing.assert_close(found[:, -1], expected[:, -1], rtol=1e-4, atol=1e-4)
        swept = vlm.sweep(prompt, [made], measure="logits", progress=False).stack("logits")
        torch.testing.assert_close(swept[:, 0], found[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["scale", "value", "cut"])
def test_in_towers(pair, kind):
    vlm, _ = pair
    prompt = next(iter(prompts(vlm)))
    image = prompt.layout.images[-1]
    grid = image.vision.grid()
    queries = Patches(image.index, rows=0)
    keys = Patches(image.index, rows=1, cols=1) + Patches(image.index, rows=0, cols=0)
    hidden = [p for _, p in keys.resolve(prompt.layout, "vision")]
    cells = {pair: hidden for pair in queries.resolve(prompt.layout, "vision")}
    edit, change = {
        "scale": (AttentionEdit(queries, keys, scale=0.5, layers=0, part="vision"),
                  rescaled(0.5, True)),
        "value": (AttentionEdit(queries, keys, value=0.25, layers=0, part="vision"),
                  given(0.25, True)),
        "cut": (AttentionKnockout(queries, keys, layers=0, part="vision"), rescaled(0, True)),
    }[kind]  # fmt: skip
    assert grid.row == next(iter(cells))[0]
    expected = by_pattern(vlm, prompt, "vision.", 0, cells, change)
    found = vlm.run(prompt, interventions=edit)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - vlm.run(prompt)).abs().max() > 1e-5
    swept = vlm.sweep(prompt, [edit, edit], measure="logits", progress=False).stack("logits")
    for logits in swept:
        torch.testing.assert_close(logits[0], found[0, -1], rtol=1e-4, atol=1e-4)


def cross_cells(prompt, keys):
    hidden = [p for _, p in keys.resolve(prompt.layout, "projector")]
    return {(0, prompt.length - 1): hidden}


@pytest.mark.parametrize("pair", ["mllama"], indirect=True)
def test_cross_attention_to_a_picture(pair):
    vlm, eager = pair
    texts = ["Q:<image>b\nA:", "Q:<image>b\nA:" + " red" * 60]  # more text than keys
    for text in texts:
        prompt = vlm.prompt(text, [tiny.noise_picture(0, (24, 16))])
        keys = Patches(0, rows=(0, 2))
        cells = cross_cells(prompt, keys)
        cuts = [(0, q, k) for (_, q), mine in cells.items() for k in mine]
        knockout = AttentionKnockout(Last(), keys, part="cross", heads=(1, 2))
        found = vlm.run(prompt, interventions=knockout)
        expected = by_mask(vlm, eager, prompt.inputs, cuts, (1,), (1, 2))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert (found - vlm.run(prompt)).abs().max() > 1e-4
        for edit, change in (
            ({"value": 0.01}, given(0.01, True)),
            ({"scale": 4}, rescaled(4, True)),
            ({"scale": 0, "renormalise": False}, rescaled(0, False)),
        ):
            made = AttentionEdit(Last(), keys, part="cross", **edit)
            expected = by_pattern(vlm, prompt, "", 1, cells, change)
            found = vlm.run(prompt, interventions=made)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        swept = vlm.sweep(prompt, knockout.each_window(1), measure="logits", progress=False).stack(
            "logits"
        )[:, 0]
        expected = vlm.run(prompt, interventions=knockout)
        torch.testing.assert_close(swept[0].reshape(-1), expected[0, -1], rtol=1e-4, atol=1e-4)
    with pytest.raises(PointError, match="positions of the prompt.*part='language'"):
        vlm.run(prompt, interventions=AttentionKnockout(Last(), keys, layers=0, part="cross"))
    with pytest.raises(PointError, match="features of pictures.*part='cross'"):
        vlm.run(prompt, interventions=AttentionKnockout(Last(), At(0), layers=1))


@pytest.mark.parametrize("pair", ["mllama"], indirect=True)
def test_new_tokens_do_not_see_the_picture_either(pair):
    model = copy.deepcopy(pair[0].hf_model)
    block = model.model.language_model.layers[1]
    block.cross_attn_attn_gate.data.fill_(3.0)  # so that pictures decide what is said
    block.cross_attn.q_norm.weight.data.mul_(8.0)
    vlm, eager = HookedVLM(model, pair[0].processor), tiny.eager_copy(model)
    prompt = vlm.prompt("Q:<image>b\nA:", [tiny.noise_picture(0, (24, 16))])
    keys = Patches(0, rows=(0, 2))
    hidden = [p for _, p in keys.resolve(prompt.layout, "projector")]
    knockout = AttentionKnockout(Last() + Generated(), keys, part="cross")
    options = {"max_new_tokens": 4, "interventions": knockout, "eos_token_id": None}
    found = vlm.generate(prompt, **options).tokens
    assert not torch.equal(found, vlm.generate(prompt, max_new_tokens=4, eos_token_id=None).tokens)
    inputs = dict(prompt.inputs)
    for step in range(4):
        length = prompt.length + step
        cuts = [(0, q, k) for q in range(prompt.length - 1, length) for k in hidden]
        logits = by_mask(vlm, eager, inputs, cuts, (1,))
        token = logits[:, -1].argmax(-1, keepdim=True)
        assert torch.equal(token[:, 0], found[:, step])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(token)], 1)
        mask = inputs["cross_attention_mask"]
        inputs["cross_attention_mask"] = torch.cat([mask, mask[:, -1:]], 1)


def test_new_tokens_read_with_other_weights(load):
    vlm = load("clip-llama")
    prompt = vlm.prompt("Q:<image>b\nA:", [tiny.noise_picture()])
    for edit in (
        AttentionEdit(Last() + Generated(), Images(), scale=5),
        AttentionEdit(Last() + Generated(), At((1, 2)), value=0.4),
        AttentionKnockout(Last() + Generated(), Images(), renormalise=False),
    ):
        options = {"max_new_tokens": 5, "interventions": edit, "eos_token_id": None}
        found = vlm.generate(prompt, **options).tokens
        assert torch.equal(vlm.generate(prompt, use_cache=False, **options).tokens, found)


def test_what_can_be_saved_and_composed(load, tmp_path):
    vlm = load("clip-llama")
    prompt = vlm.prompt("Q:<image>b\nA:", [tiny.noise_picture()])
    edit = AttentionEdit(Last(), Images(), value=0.01, layers=1, heads=2)
    edit.save(tmp_path / "edit")
    assert AttentionEdit.load(tmp_path / "edit") == edit
    both = edit + Scale("blocks.1.attn.hook_z", at=Last(), factor=2.0, heads=2)
    swept = vlm.sweep(prompt, [edit, both], measure="logits", progress=False)
    assert swept.engines == {"replay": 2}
    for logits, made in zip(swept.stack("logits"), (edit, both), strict=True):
        expected = vlm.run(prompt, interventions=made)[0, -1]
        torch.testing.assert_close(logits.reshape(-1), expected, rtol=1e-4, atol=1e-4)
    windows = AttentionEdit(Last(), Images(), scale=2.0).each_window(1)
    swept = vlm.sweep(prompt, windows, measure="logits", progress=False)
    assert [(r["layer"], r["scale"]) for r in swept.records] == [(0, 2.0), (1, 2.0)]


def test_what_is_refused(load):
    vlm = load("clip-llama")
    prompt = vlm.prompt("Q:<image>b\nA:", [tiny.noise_picture()])
    for options, says in (
        ({}, "one of the two"),
        ({"value": 1, "scale": 1}, "one of the two"),
        ({"value": 1.5}, "from 0 to 1"),
        ({"scale": -1}, "0 or more"),
        ({"scale": math.nan}, "finite number"),
        ({"value": "much"}, "finite number"),
        ({"scale": 2, "part": "audio"}, "part="),
    ):
        with pytest.raises(InterventionError, match=says):
            AttentionEdit(Last(), Images(), **options)
    AttentionEdit(Last(), Images(), scale=-1, renormalise=False)
    for edit in (
        AttentionEdit(Last(), Images(), value=0.5),  # 16 keys of one half
        AttentionEdit(At(0), At(0), value=0.5),  # nothing that the rest could go to
        AttentionEdit(At(0), At(0), scale=0),
    ):
        with pytest.raises(InterventionError, match="rest of its weight"):
            vlm.run(prompt, interventions=edit)
    with pytest.raises(PointError, match="no blocks of cross-attention"):
        vlm.run(prompt, interventions=AttentionEdit(Last(), Images(), scale=2, part="cross"))
