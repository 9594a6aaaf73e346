"""Gradient x input and integrated gradients of one prompt, against plain autograd and in sum."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from induction_case import HERE, asked, model
from PIL import Image

from vlm_lens import All, Scale, VLMLensError
from vlm_lens.measures import AnswerProb

TOKENS = (10, 20)


def log_probs(vlm, prompt, merged=None, pixels=None) -> torch.Tensor:
    """Log p of two tokens, the second after the first, by plain torch."""
    inputs = dict(prompt.inputs)
    n = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[TOKENS[0]]])], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if pixels is not None:
        inputs["pixel_values"] = pixels
    handle = None
    if merged is not None:
        first = vlm.hf_model.model.language_model.layers[0]

        def put(module, args, kwargs):
            x = args[0] if args else kwargs["hidden_states"]
            new = torch.cat([merged, x[:, n:]], 1)
            return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

        handle = first.register_forward_pre_hook(put, with_kwargs=True)
    logits = vlm.hf_model(**inputs, use_cache=False).logits[0].log_softmax(-1)
    if handle:
        handle.remove()
    return torch.stack([logits[n - 1, TOKENS[0]], logits[n, TOKENS[1]]])


@pytest.mark.parametrize("baseline", ["mean", "zero"])
def test_gradient_times_input_by_plain_autograd(clip, picture, baseline):
    prompt = clip.prompt("a<image>b", [picture])
    found = clip.attribute(prompt, answer=TOKENS, baseline=baseline, of="logprob")
    assert found.axes == ("token", "position") and found.shape == (2, len(prompt.layout))
    merged = tiny.plain_read(clip.hf_model, prompt.inputs, ["hook_merged"])["hook_merged"]
    start = torch.zeros_like(merged)
    if baseline == "mean":
        image = list(prompt.layout.image[0].positions)
        start = merged.clone()
        start[:, image] = merged[:, image].mean(1, keepdim=True)
    merged.requires_grad_()
    for i, one in enumerate(log_probs(clip, prompt, merged)):
        (gradient,) = torch.autograd.grad(one, merged, retain_graph=True)
        expected = (gradient * (merged - start)).sum(-1)[0].detach().numpy()
        np.testing.assert_allclose(found.values[i], expected, rtol=1e-3, atol=1e-5)


def test_pixels_by_plain_autograd(clip, picture):
    prompt = clip.prompt("a<image>b", [picture])
    found = clip.attribute(prompt, answer=TOKENS, to="pixels", baseline="zero", of="logprob")
    pixels = prompt.inputs["pixel_values"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_probs(clip, prompt, pixels=pixels)[1], pixels)
    product = (gradient * pixels).sum(1)[0].detach()
    grid = prompt.layout.image[0].vision.grids[0]
    side = clip.cfg.vision.patch_size
    for r, c in ((0, 0), (1, 3), (3, 2)):
        box = product[r * side : (r + 1) * side, c * side : (c + 1) * side]
        mine = found.sel(position=grid.patch(r, c)).values[1]
        assert float(mine) == pytest.approx(float(box.sum()), rel=1e-3, abs=1e-6)
    assert float(found.values.sel(position=0).sum()) == 0  # the class token


@pytest.mark.parametrize("name", ["llava-clip", "qwen3_vl", "gemma3", "idefics2", "qwen2_vl"])
def test_integrated_gradients_add_up(name, load_family):
    vlm = load_family(name)
    prompt = vlm.prompt("Q:<image>\nA:", [tiny.noise_picture(0, (32, 48))])
    whole = tiny.plain_logits(vlm.hf_model, prompt.inputs)[0, -1]
    found = vlm.attribute(prompt, answer=45, method="ig", steps=32)
    assert found.axes == ("position",)
    patches = [p for g in prompt.layout.image[0].text.grids for p in g.positions]
    flat = {"hook_merged": patches or list(prompt.layout.image[0].positions)}
    names = [n for n in vlm.architecture.points if n.startswith("projector.deepstack.")]

    def mean(x, hook):
        mine = flat.get(hook.name, slice(None))
        x[:, mine] = x[:, mine].mean(1, keepdim=True)
        return x

    hooks = [(n, mean) for n in ("hook_merged", *names)]
    start = vlm.run_with_hooks(prompt, fwd_hooks=hooks)[0, -1]
    gap = float(whole[45] - start[45])
    assert float(found.values.sum()) == pytest.approx(gap, rel=0.02, abs=0.02)
    text = [p for p in range(len(prompt.layout)) if p not in flat["hook_merged"]]
    assert not found.values.sel(position=text).any()
    told = float(found.about["the line is off by"].split()[0])
    off = abs(float(found.values.sum()) - gap) / abs(gap)
    assert told == pytest.approx(off, rel=0.1, abs=1e-4) and told < 0.1


def test_scores_that_do_not_add_up_say_so(load_family):
    """At zero input a norm turns on the first bit of it, which steps of one size pass by."""
    vlm = load_family("mllama")
    prompt = vlm.prompt("<image>Q:Greece\nA:", [tiny.noise_picture(0, (32, 48))])
    with pytest.warns(UserWarning, match="should add up"):
        found = vlm.attribute(prompt, answer=45, method="ig", baseline="zero")

    def nothing(x, hook):
        return x * 0

    start = vlm.run_with_hooks(prompt, fwd_hooks=[("hook_merged", nothing)])[0, -1]
    change = float(vlm.run(prompt)[0, -1, 45] - start[45])
    off = abs(float(found.values.sum()) - change) / abs(change)
    assert float(found.about["the line is off by"].split()[0]) == pytest.approx(off, rel=0.5)
    with pytest.raises(VLMLensError, match="every score would be 0"):
        vlm.attribute(prompt, answer=45)  # its picture is at one position of the text
    assert vlm.attribute(prompt, answer=45, to="projector.hook_out").values.any()


@pytest.mark.parametrize("name", ["paligemma", "florence2", "t5gemma2", "mllama"])
def test_an_answer_is_read_as_it_is_generated(name, load_family):
    """The derivative by the input's size, along finite differences of the forced generation."""
    vlm = load_family(name)
    prompt = vlm.prompt("<image>Q:Greece\nA:", [tiny.noise_picture(3, (32, 24))])
    answer = (20, 33, 47)
    found = vlm.attribute(prompt, answer=answer, baseline="zero", of="logprob")

    point = found.about["to"]  # what the encoder reads, where there is one

    def said(size):
        edit = Scale(point, All(), size)
        bound = AnswerProb((answer,), normalize=False).bind(vlm, prompt)
        return bound.of_run(edit)[0]["answer_logprob"]

    slope = (said(1.003) - said(0.997)) / 0.006
    assert float(found.values.sum()) == pytest.approx(slope, rel=0.03, abs=0.02)


def test_pixels_of_a_tower_that_merges_patches_add_up(load_family):
    """Florence-2's patches are wider than the stride of its first convolution."""
    vlm = load_family("florence2")
    prompt = vlm.prompt("<image>Q:A", [tiny.noise_picture(0)])
    found = vlm.attribute(prompt, answer=45, to="pixels", method="ig", steps=48)
    assert float(found.about["the line is off by"].split()[0]) < 0.03


@pytest.mark.parametrize("name", ["florence2", "t5gemma2"])
def test_patches_of_an_encoder_decoder_are_those_that_its_encoder_reads(name, load_family):
    vlm = load_family(name)
    prompt = vlm.prompt("<image>Q:A", [tiny.noise_picture(0)])
    found = vlm.attribute(prompt, answer=45, method="ig", steps=48)
    assert found.about["to"] == "encoder.hook_merged"
    encoder = prompt.layout.encoder
    assert len(found.values) == len(encoder)
    pictured = [p for im in encoder.images for p in im.grid.positions]
    rest = [p for p in range(len(encoder)) if p not in pictured]
    assert found.values.sel(position=pictured).any()
    assert not found.values.sel(position=rest).any()


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_packed_pixels_stand_where_their_picture_is(name, load_family):
    """Also in a tower that reads window after window, and each picture from its own mean."""
    vlm = load_family(name)
    pictures = [tiny.noise_picture(i, (96, 64)) for i in range(2)]
    prompt = vlm.prompt("<image><image>A:", pictures)
    found = vlm.attribute(prompt, answer=45, to="pixels")
    pixels = prompt.inputs["pixel_values"].clone().requires_grad_()
    inputs = {**prompt.inputs, "pixel_values": pixels}
    logits = vlm.hf_model(**inputs, use_cache=False).logits
    (gradient,) = torch.autograd.grad(logits[0, -1, 45], pixels)
    halves = pixels.detach().chunk(2)
    start = torch.cat([x.mean(0, keepdim=True).expand_as(x) for x in halves])
    product = (gradient * (pixels.detach() - start)).sum(-1)
    scale = float(product.abs().max())
    for number, row, col in ((0, 0, 5), (0, 7, 2), (1, 3, 4), (1, 6, 11)):
        grid = prompt.layout.images[number].vision.grids[0]
        left, top, right, bottom = grid.pixels(grid.patch(row, col))
        changed = np.array(pictures[number])
        middle = (int(top + bottom) // 2, int(left + right) // 2)
        changed[middle] = 255 - changed[middle]
        shown = [*pictures]
        shown[number] = Image.fromarray(changed)
        other = vlm.prompt("<image><image>A:", shown).inputs["pixel_values"]
        here = int((other - pixels.detach()).abs().sum(-1).argmax())
        mine = float(found.values.sel(position=grid.patch(row, col)))
        assert mine == pytest.approx(float(product[here]), abs=1e-4 * scale)


def test_padding_on_the_right_changes_nothing(clip, picture):
    text = "Q:<image>\nA:"
    padded = clip.processor(
        text=text, images=[picture], return_tensors="pt", padding="max_length", max_length=40,
        padding_side="right",
    )  # fmt: skip
    alone, beside = (
        clip.attribute(p, answer=45).values.to_numpy()
        for p in (clip.prompt(text, [picture]), clip.as_prompt(padded))
    )
    np.testing.assert_allclose(beside[: len(alone)], alone, atol=1e-4)
    assert not beside[len(alone) :].any()


def test_the_patch_that_is_asked_of():
    found = model().attribute(asked(0), answer=HERE)
    assert found.top(1)["patch"][0] == (2, 1)  # b3
    assert found.over_picture() is not None
    again = model().attribute(asked(0))  # its own answer
    np.testing.assert_array_equal(again.values, found.values)
    at_projector = model().attribute(asked(0), answer=HERE, to="projector.hook_out")
    assert at_projector.space == "projector"
    assert at_projector.top(1)["patch"][0] == (2, 1)


def test_what_cannot_be_attributed_is_told(clip, llama, picture):
    prompt = clip.prompt("a<image>b", [picture])
    for options, words in (
        ({"method": "lime"}, "method is one of"),
        ({"baseline": "grey"}, "baseline is one of"),
        ({"of": "prob"}, "of is one of"),
        ({"method": "ig", "steps": 0}, "at least 1"),
        ({"to": "blocks.0.attn.hook_z"}, "no vector a position"),
        ({"to": "nowhere"}, "no point 'nowhere'"),
        ({"answer": 10**6}, "ids are 0 to"),
    ):
        with pytest.raises(VLMLensError, match=words):
            clip.attribute(prompt, **options)
    with pytest.raises(VLMLensError, match="no picture"):
        llama.attribute("Q:Greece\nA:", answer=5)
    with pytest.raises(VLMLensError, match="no pixels"):
        llama.attribute("Q:Greece\nA:", answer=5, to="pixels")
    assert llama.attribute("Q:Greece\nA:", answer=5, baseline="zero").axes == ("position",)
    with pytest.raises(VLMLensError, match="2 rows"):
        llama.attribute(llama.prompt(["a", "b"]))
