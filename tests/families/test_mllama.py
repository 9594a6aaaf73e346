"""Mllama: pictures are read by cross-attention, and stand nowhere in the text."""

from __future__ import annotations

import pytest
import tiny
import torch

from families import bench
from vlm_lens import Ablate, Images, Last, Patches, TaskVector
from vlm_lens.errors import PointError, PositionError, PromptError

MODEL = "mllama"
SIZES = ((24, 12), (12, 36))  # tiles are 12 by 12
TEXT = "Q:<image>b<image>A:"


def test_pictures_of_every_shape_and_mode(vlm):
    for picture in bench.odd_pictures():
        prompt = vlm.prompt("Q:<image>A:", [picture])
        grid = prompt.layout.image[0].projector.grid()
        shown = [grid.pixels(p) for p in grid.positions]
        assert max(b[2] for b in shown) == pytest.approx(picture.size[0])
        assert max(b[3] for b in shown) == pytest.approx(picture.size[1])


def test_geometry_over_tiles(vlm, pictures):
    points = ["projector.hook_in", "projector.hook_out"]
    resized = [bench.grey((50, 31)), pictures[0]]
    bench.check_painting(vlm, TEXT, resized, 0, points=points, step=4)
    images = vlm.prompt(TEXT, pictures).layout.images
    first = images[0].vision.grid()
    # a tile is 9 patches and a class token, filled up to 16; the second tile is to the right
    assert (first.rows, first.cols, first.patch(0, 2), first.patch(0, 3)) == (3, 6, 3, 17)
    below = images[1].vision.grid()
    assert (below.rows, below.cols, below.row, below.patch(3, 0)) == (9, 3, 1, 17)
    # in the projector's output, pictures of a prompt follow each other, four tiles of 10 each
    assert images[1].projector.grid().patch(0, 0) == 41


def plain(vlm, texts, pictures):
    inputs = vlm.prompt(texts, pictures).inputs
    with torch.no_grad():
        return vlm.hf_model(**inputs, use_cache=False).logits


@pytest.mark.filterwarnings("error")
def test_rows_of_equally_many_pictures_are_those_rows_alone(vlm):
    pictures = [tiny.noise_picture(i, size) for i, size in enumerate([*SIZES, (40, 36), (24, 24)])]
    texts = ["<image>Q:Greece\nA:", "<image>What"]
    bench.check_batch_is_its_rows(vlm, vlm.prompt(texts, [pictures[:1], pictures[1:2]]))
    texts = ["<image>b<image>Q:Greece\nA:", "<image><image>What"]
    bench.check_batch_is_its_rows(vlm, vlm.prompt(texts, [pictures[:2], pictures[2:]]))


@pytest.mark.parametrize("n_first", (0, 1))
def test_rows_of_fewer_pictures_are_not_in_transformers_itself_and_it_is_said(vlm, n_first):
    pictures = [tiny.noise_picture(i) for i in range(3)]
    texts = ["<image>" * n_first + "Q:Greece\nA:", "<image><image>What"]
    rows = [pictures[:n_first], pictures[1:]]
    with pytest.warns(UserWarning, match="different numbers of pictures"):
        prompt = vlm.prompt(texts, rows)
    with torch.no_grad():
        together = vlm.hf_model(**prompt.inputs, use_cache=False).logits
    assert torch.equal(vlm.run(prompt), together)
    fewer, more = (plain(vlm, [t], [p] if p else None) for t, p in zip(texts, rows, strict=True))
    assert (together[0, -1] - fewer[0, -1]).abs().max() > 0.01
    torch.testing.assert_close(together[1, -1], more[0, -1], rtol=1e-4, atol=1e-4)


def test_the_text_holds_no_patches(vlm, pictures):
    layout = vlm.prompt(TEXT, pictures).layout
    assert len(layout) == len(["<s>", "<s>", *"Q:", "image", "b", "image", *"A:"])
    assert [layout.strings[p] for i in layout.images for p in i.positions] == ["<|image|>"] * 2
    with pytest.raises(PositionError, match="cross-attention"):
        layout.image[0].box(0, 0, 4, 4)


def test_cross_attention(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    names = ["projector.hook_out", *(f"blocks.1.attn.hook_{n}" for n in ("k", "v", "pattern", "z"))]
    cache = vlm.run_with_cache(prompt, names_filter=names)[1]
    cross = vlm.hf_model.model.language_model.layers[1].cross_attn
    out, k, v, pattern, z = (cache[n] for n in names)
    assert out.shape == (1, 80, 32) and pattern.shape == (1, 4, len(prompt.layout), 80)
    torch.testing.assert_close(k.flatten(2), cross.k_proj(out))
    mixed = (pattern @ v.repeat_interleave(2, 2).transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(mixed, z, rtol=1e-4, atol=1e-5)
    # between the pictures the first is seen, after them the second
    first, second = (list(i.projector.sequences[0][1]) for i in prompt.layout.images)
    seen = (pattern[0] > 0).any(0)
    place = prompt.layout.image[0].positions[0]
    assert set(seen[place + 1].nonzero().flatten().tolist()) >= set(first)
    assert not seen[place + 1, second].any() and not seen[-1, first].any()
    bench.check_pattern_edit(vlm, prompt, "blocks.1.attn.hook_pattern", (0, second[3]))
    grid = prompt.layout.image[0].vision.grid()
    tower = "vision.blocks.0.attn.hook_pattern"
    bench.check_pattern_edit(vlm, prompt, tower, (0, grid.patch(1, 1)))


def test_what_blocks_add(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    for block in ("blocks.1.", "vision.global.blocks.0.", "vision.blocks.1."):
        names = [f"{block}hook_{n}" for n in ("resid_pre", "attn_out", "resid_mid")]
        cache = vlm.run_with_cache(prompt, names_filter=names)[1]
        pre, added, middle = (cache[n] for n in names)
        torch.testing.assert_close(pre + added, middle)
    with pytest.raises(PointError, match="cuts out positions before the first picture"):
        vlm.points("blocks.1.hook_mlp_out")
    with pytest.raises(PointError, match=r"use projector\.hook_in"):
        vlm.points("vision.hook_out")


def test_a_write_between_gated_attention_and_mlp(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    block = vlm.hf_model.model.language_model.layers[1]
    names = ["blocks.1.hook_resid_mid", "blocks.1.hook_resid_post"]
    middle = vlm.run_with_cache(prompt, names_filter=names)[1][names[0]].flip(-1)
    with vlm.hooks([(names[0], lambda x, hook: middle)]):
        after = vlm.run_with_cache(prompt, names_filter=names)[1][names[1]]
    with torch.no_grad():
        added = block.mlp(block.post_attention_layernorm(middle))
        added[:, : prompt.layout.image[0].positions[0]] = 0
        torch.testing.assert_close(after, middle + block.cross_attn_mlp_gate.tanh() * added)


def test_writes(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    names = ["vision.hook_embed", "vision.blocks.0.attn.hook_k", "vision.blocks.2.hook_resid_post",
             "vision.global.blocks.0.hook_resid_mid", "vision.global.blocks.0.hook_attn_out",
             "projector.hook_in", "projector.hook_out", "blocks.1.attn.hook_k",
             "blocks.1.attn.hook_v"]  # fmt: skip
    bench.check_writes_act(vlm, prompt, names)
    name = "projector.hook_out"
    patch = Ablate(name, at=Patches(1, rows=4, cols=1))
    cache = vlm.run_with_cache(prompt, names_filter=[name], interventions=patch)[1]
    zero = (cache[name][0] == 0).all(-1).nonzero().flatten().tolist()
    assert zero == [prompt.layout.image[1].projector.grid().patch(4, 1)] == [40 + 10 + 1 + 4]


def test_generation(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    bench.check_generation(vlm, prompt, "projector.hook_out")
    off = Ablate("blocks.1.attn.hook_v", at=Images())
    tokens = vlm.generate(prompt, max_new_tokens=2, interventions=off).tokens
    assert tokens.shape == (1, 2)


def test_prompts_without_pictures_skip_cross_attention(vlm):
    prompt = vlm.prompt("Q:a")
    names = [n for n in vlm.run_with_cache(prompt)[1] if n.startswith("blocks.1.")]
    assert names == ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"]
    with pytest.raises(PromptError, match="computed from pictures"):
        vlm.run_with_cache(prompt, names_filter="blocks.1.hook_attn_out")


def test_texts_are_read_at_every_block(vlm, pictures):
    """Without pictures a block is skipped; its ends are where the stream passes."""
    prompt = vlm.prompt(["Q:a", "longer:"])
    names = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post",
             "blocks.2.hook_resid_pre"]  # fmt: skip
    cache = vlm.run_with_cache(prompt, names_filter=names)[1]
    seen = []
    layers = vlm.hf_model.model.language_model.layers
    handle = layers[2].register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    plain = tiny.plain_logits(vlm.hf_model, prompt.inputs)
    handle.remove()
    for name in names:
        assert torch.equal(cache[name], seen[0]), name
    vector = TaskVector.read(vlm, ["Q:a", "longer:"], at=Last())
    assert torch.equal(vector.data.data[0], vector.data.data[1])
    zero = Ablate("blocks.1.hook_resid_post", at=Last())
    changed = vlm.run(prompt, interventions=zero)

    def cut(m, args):
        x = args[0].clone()
        x[:, -1] = 0
        return (x, *args[1:])

    handle = layers[2].register_forward_pre_hook(cut)
    assert torch.equal(changed, tiny.plain_logits(vlm.hf_model, prompt.inputs))
    handle.remove()
    assert not torch.equal(changed, plain)
    with_pictures = vlm.prompt(TEXT, pictures)
    names = ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"]
    cache = vlm.run_with_cache(with_pictures, names_filter=names)[1]
    seen.clear()
    handle = layers[1].register_forward_hook(lambda m, a, out: seen.extend([a[0], tiny.first(out)]))
    tiny.plain_logits(vlm.hf_model, with_pictures.inputs)
    handle.remove()
    for name, expected in zip(names, seen, strict=True):
        assert torch.equal(cache[name], expected), name


def test_errors(vlm, pictures, no_forward):
    inputs = vlm.prompt(TEXT, pictures).inputs
    no_forward(vlm)
    with pytest.raises(PromptError, match="2 image tokens but no pixel_values"):
        vlm.run({k: inputs[k] for k in ("input_ids", "attention_mask")})
    ids = inputs["input_ids"].where(inputs["input_ids"] != vlm.architecture.image_token_id, 30)
    with pytest.raises(PromptError, match=r"\[0\] image tokens and \[2\] pictures"):
        vlm.run(inputs | {"input_ids": ids})
