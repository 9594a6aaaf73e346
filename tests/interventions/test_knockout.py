"""Attention knockout against plain transformers with an additive mask."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from edge_case import by_mask, edges, own_layers, prompts

from vlm_lens import (
    At,
    AttentionKnockout,
    Find,
    Generated,
    Images,
    Last,
    Patches,
    Text,
)
from vlm_lens.errors import InterventionError, PointError, PositionError

CUTS = [
    (Last(), Images(), (0, 1), None),
    (Text(), At((1, 2)), (0, 1), (0, 3)),
    (Last() + Find("A", -1), Patches(0, rows=0), (0,), (2,)),
]


def fits(vlm, prompt, keys):
    try:
        [keys.resolve(layout) for layout in prompt.layouts]
    except PositionError:
        return False
    return True


@pytest.mark.parametrize("number", range(len(CUTS)))
def test_a_knockout_is_an_additive_mask(pair, number):
    vlm, eager = pair
    queries, keys, layers, heads = CUTS[number]
    layers = tuple(layer for layer in layers if layer in own_layers(vlm))
    tried = 0
    for prompt in prompts(vlm):
        if not fits(vlm, prompt, keys):
            continue  # text of a model whose pictures stand elsewhere, or have no patches
        tried += 1
        cuts = [e for e in edges(prompt, queries, keys) if e[1] != e[2]]
        if number == 1:  # a position's own key stays, so that none is left without
            keys = At((1,))
            queries = Last() + At((-2, -3))
            cuts = edges(prompt, queries, keys)
        knockout = AttentionKnockout(queries, keys, layers, heads)
        found = vlm.run(prompt, interventions=knockout)
        expected = by_mask(vlm, eager, prompt.inputs, cuts, layers, heads)
        plain = vlm.run(prompt)
        for row, layout in enumerate(prompt.layouts):
            real = slice(layout.start, None)
            torch.testing.assert_close(found[row, real], expected[row, real], rtol=1e-4, atol=1e-4)
        if vlm.family.name != "gemma3":  # its windows hide some of these keys already
            assert (found - plain).abs().max() > 1e-4
        swept = vlm.sweep(prompt, [knockout], measure="logits", progress=False).stack("logits")
        torch.testing.assert_close(swept[:, 0], found[:, -1], rtol=1e-4, atol=1e-4)
    assert tried or vlm.family.name in ("mllama", "idefics2")


def test_new_tokens_do_not_see_the_keys_either(pair):
    vlm, eager = pair
    if vlm.family.name == "paligemma":
        pytest.skip("read anew, its new tokens would be seen by the prompt")
    prompt = next(iter(prompts(vlm)))
    keys = At((1, 2))
    knockout = AttentionKnockout(Last() + Generated(), keys)
    options = {"max_new_tokens": 4, "interventions": knockout, "eos_token_id": None}
    found = vlm.generate(prompt, **options).tokens
    assert torch.equal(vlm.generate(prompt, use_cache=False, **options).tokens, found)
    layers = own_layers(vlm)
    inputs = dict(prompt.inputs)
    for step in range(4):
        length = prompt.length + step
        cuts = [(0, q, k) for q in range(prompt.length - 1, length) for k in keys.positions]
        logits = by_mask(vlm, eager, inputs, cuts, layers)
        token = logits[:, -1].argmax(-1, keepdim=True)
        assert torch.equal(token[:, 0], found[:, step])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(token)], 1)
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in inputs:
                inputs[name] = torch.cat([inputs[name], torch.zeros_like(token)], 1)
        if "cross_attention_mask" in inputs:
            mask = inputs["cross_attention_mask"]
            inputs["cross_attention_mask"] = torch.cat([mask, mask[:, -1:]], 1)


def test_windows_and_what_can_be_saved(load, tmp_path):
    vlm = load("clip-llama")
    knockout = AttentionKnockout(Last(), Images(), heads=1)
    windows = knockout.each_window(1).expand(vlm.points())
    assert [w.layers for w in windows] == [(0,), (1,)]
    assert knockout.each_layer().expand(vlm.points()) == windows
    prompt = vlm.prompt("<image>A:", [tiny.noise_picture()])
    both = vlm.run(prompt, interventions=windows)
    torch.testing.assert_close(vlm.run(prompt, interventions=knockout), both)
    cut = AttentionKnockout(Last() + Generated(), ~(Images() + Last()), layers=range(2))
    cut.save(tmp_path / "cut")
    assert AttentionKnockout.load(tmp_path / "cut") == cut
    swept = vlm.sweep(prompt, knockout.each_window(1), measure="logits", progress=False)
    assert [(r["layer"], r["layers"], r["head"]) for r in swept.records] == [
        (0, "0", "1"), (1, "1", "1"),
    ]  # fmt: skip
    for logits, window in zip(swept.stack("logits")[:, 0], windows, strict=True):
        full = vlm.run(prompt, interventions=window)[0, -1]
        torch.testing.assert_close(logits, full, rtol=1e-4, atol=1e-4)
    with pytest.raises(InterventionError, match="1 to 2 blocks"):
        vlm.sweep(prompt, knockout.each_window(3), progress=False)


def test_in_the_tower(load):
    """Against the same patches taken out of the pattern, and the rest summing to 1 again."""
    vlm = load("siglip-mistral")
    prompt = vlm.prompt("<image>A:", [tiny.noise_picture()])
    knockout = AttentionKnockout(At((0, 5)), Patches(0, rows=1), layers=1, part="vision")
    hidden = [p for _, p in Patches(0, rows=1).resolve(prompt.layout, "vision")]

    def cut(x, hook):
        x[:, :, [0, 5]] = x[:, :, [0, 5]].index_fill(-1, torch.tensor(hidden), 0)
        return x / x.sum(-1, keepdim=True)

    expected = vlm.run_with_hooks(prompt, fwd_hooks=[("vision.blocks.1.attn.hook_pattern", cut)])
    found = vlm.run(prompt, interventions=knockout)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - vlm.run(prompt)).abs().max() > 1e-3


def test_all_blocks_of_a_tower_are_those_that_are_read(load):
    vlm = load("clip-llama")  # whose projector reads the last but one
    prompt = vlm.prompt("<image>A:", [tiny.noise_picture()])
    cut = AttentionKnockout(At(0), Patches(0, rows=1), part="vision")
    found = vlm.run(prompt, interventions=cut)
    torch.testing.assert_close(found, vlm.run(prompt, interventions=replace(cut, layers=(0, 1))))
    assert (found - vlm.run(prompt)).abs().max() > 1e-4
    assert [w.layers for w in cut.each_window(1).expand(vlm.points())] == [(0,), (1,)]
    with pytest.raises(PointError, match="cannot be written: the projector reads block 1"):
        vlm.run(prompt, interventions=replace(cut, layers=2))


@pytest.mark.parametrize("name", ("clip-llama", "siglip-mistral"))
def test_keys_in_a_picture_that_no_query_is_of_are_replayed(load, name):
    vlm = load(name)
    prompt = vlm.prompt("<image>b<image>A:", [tiny.noise_picture(i) for i in range(2)])
    cuts = [
        AttentionKnockout(Patches(0, rows=0), Images() - Patches(0, rows=0), part="vision"),
        AttentionKnockout(Patches(1), Patches(0), part="vision"),  # which changes nothing
    ]
    swept = vlm.sweep(prompt, cuts, measure="logits", progress=False)
    assert swept.engines == {"replay": 2}
    logits = swept.stack("logits")[:, 0]
    for found, cut in zip(logits, cuts, strict=True):
        full = vlm.run(prompt, interventions=cut)[0, -1]
        torch.testing.assert_close(found, full, rtol=1e-4, atol=1e-4)
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_what_is_refused(load, no_forward):
    vlm = load("clip-llama")
    prompt = vlm.prompt("<image>A:", [tiny.noise_picture()])
    with pytest.raises(InterventionError, match="no key to attend to"):
        vlm.run("Q:Greece", interventions=AttentionKnockout(Last(), ~At(0) + At(0)))
    no_forward(vlm)
    for knockout, error, says in (
        (AttentionKnockout(At(0), Last()), InterventionError, "nothing to cut"),
        (AttentionKnockout(Last(), Images(), layers=(1, 7)), PointError, "blocks.7"),
        (AttentionKnockout(Last(), Images(), heads=9), PointError, "heads 0..3"),
        (AttentionKnockout(Last(), Patches(3)), PositionError, "image 3"),
    ):
        with pytest.raises(error, match=says):
            vlm.run(prompt, interventions=knockout)
    with pytest.raises(PointError):
        load("llama").run("Q:", interventions=AttentionKnockout(0, 0, part="vision"))
    for make, says in (
        (lambda: AttentionKnockout(Last(), Generated()), "positions of the prompt"),
        (
            lambda: AttentionKnockout(Last(), Images(), part="audio"),
            "'language', 'vision', 'encoder', 'cross'",
        ),
        (lambda: AttentionKnockout(Last(), Images(), layers=()), "name at least one block"),
        (lambda: AttentionKnockout(Last(), Images(), layers="all"), "whole number"),
    ):
        with pytest.raises(InterventionError, match=says):
            make()
