"""Chameleon: pictures are tokens of the vocabulary, chosen by a VQ model."""

from __future__ import annotations

import pytest
import tiny
import torch

from families import bench, tiny_chameleon
from vlm_lens import Ablate, ActivationPatch, HookedVLM, Patches
from vlm_lens.errors import PointError, PositionError, PromptError

MODEL = "chameleon"
SIZES = ((16, 16), (24, 16))
TEXT = "Q:<image>b<image>A:"


def tokens_of(vlm, prompt, **options) -> torch.Tensor:
    """The token of each patch, found by what was put into the language model."""
    cache = vlm.run_with_cache(prompt, names_filter=["hook_merged"], **options)[1]
    table = vlm.hf_model.model.embed_tokens.weight
    return torch.cdist(cache["hook_merged"][0], table).argmin(-1)


@torch.no_grad()
def short_sighted(model):
    """The model with convolutions that see little beyond the patch itself."""
    for module in model.model.vqmodel.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            far = torch.full((3, 3), 0.03)
            own = slice(1, 2) if module.stride == (1, 1) else slice(0, 2)
            far[own, own] = 1
            module.weight *= far
    return model


def test_pictures_of_every_shape_and_mode(vlm):
    for picture in bench.odd_pictures():
        prompt = vlm.prompt("Q:<image>A:", [picture])
        x0, y0, x1, y1 = prompt.layout.image[0].grid.pixels_of.seen
        side = min(picture.size)  # the middle square
        assert x1 - x0 == pytest.approx(side, abs=side / 16) == y1 - y0
        assert (x0 + x1) / 2 == pytest.approx(picture.size[0] / 2, abs=side / 16)


def test_geometry(vlm, pictures):
    near = HookedVLM(short_sighted(tiny_chameleon.build()), vlm.processor)
    noise = [tiny.noise_picture(1, (16, 16)), tiny.noise_picture(2, (24, 16))]
    for number in (0, 1):
        bench.check_painting(near, TEXT, noise, number, points=["vision.hook_out"])
    layout = vlm.prompt(TEXT, pictures).layout
    image = layout.image[1]
    assert image.pixels(image.patch(0, 0)) == pytest.approx((4, 0, 8, 4))
    assert [layout.strings[image.positions[i]] for i in (0, -1)] == ["<racm3:break>", "<eoss>"]
    assert layout.strings[-1] == ":"  # no separator after the text
    with pytest.raises(PositionError, match="no projector"):
        image.projector.grid()


def test_tokens_of_patches(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    found = tokens_of(vlm, prompt)
    for number, image in enumerate(prompt.layout.images):
        expected = vlm.hf_model.get_image_tokens(prompt.inputs["pixel_values"])[number]
        assert found[list(image.grid.positions)].tolist() == expected.tolist()
    names = {vlm.tokenizer.convert_ids_to_tokens(int(t)) for t in expected}
    assert names <= set(tiny_chameleon.IMAGE_TOKENS)


def test_a_code_written_at_one_patch_is_its_token(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    plain = tokens_of(vlm, prompt)
    place = prompt.layout.image[1].patch(2, 1)
    number = next(i for i, name in enumerate(tiny_chameleon.IMAGE_TOKENS)
                  if vlm.tokenizer.convert_tokens_to_ids(name) != int(plain[place]))  # fmt: skip
    code = vlm.hf_model.model.vqmodel.quantize.embedding.weight[number].detach().clone()
    patch = ActivationPatch("vision.hook_out", at=Patches(1, rows=2, cols=1), value=code)
    written = tokens_of(vlm, prompt, interventions=patch)
    assert (written != plain).nonzero().flatten().tolist() == [place]
    token = tiny_chameleon.IMAGE_TOKENS[number]
    assert vlm.tokenizer.convert_ids_to_tokens(int(written[place])) == token


def test_picture_tokens_are_never_said(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    logits, cache = vlm.run_with_cache(prompt, names_filter="blocks.1.hook_resid_post")
    decoded = vlm.unembed(vlm.ln_final(cache["resid_post", 1]))
    said = torch.ones(logits.shape[-1], dtype=torch.bool)
    said[list(vlm.architecture.decoder.barred)] = False
    torch.testing.assert_close(decoded[..., said], logits[..., said])
    assert (~said).sum() == tiny_chameleon.CODES
    assert torch.equal(decoded[..., ~said], logits[..., ~said])


def test_writes(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    names = ["vision.hook_out", "hook_merged", "blocks.1.hook_resid_mid"]
    bench.check_writes_act(vlm, prompt, names)
    place = prompt.layout.image[0].patch(1, 1)
    bench.check_pattern_edit(vlm, prompt, "blocks.1.attn.hook_pattern", (0, place))


def test_norms_after_attention_and_mlp(pictures):
    vlm = HookedVLM(tiny_chameleon.build(swin_norm=True), tiny_chameleon.processor())
    bench.check_conforms(vlm, TEXT, pictures, cold=True)
    with pytest.raises(PointError, match="not what they read"):
        vlm.points("blocks.0.ln1.hook_normalized")
    off = Ablate("blocks.0.hook_attn_out", at=Patches(0, rows=0, cols=0))
    names = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_mid"]
    prompt = vlm.prompt(TEXT, pictures)
    cache = vlm.run_with_cache(prompt, names_filter=names, interventions=off)[1]
    place = prompt.layout.image[0].patch(0, 0)
    assert torch.equal(cache[names[0]][0, place], cache[names[1]][0, place])


def test_what_is_missing(vlm):
    for name, why in (("hook_embed", "use hook_merged"), ("projector.hook_out", "no projector"),
                      ("vision.blocks.0.hook_resid_post", "convolutions")):  # fmt: skip
        with pytest.raises(PointError, match=why):
            vlm.points(name)


def test_errors(vlm, pictures, no_forward):
    inputs = vlm.prompt(TEXT, pictures).inputs
    no_forward(vlm)
    without = {k: v for k, v in inputs.items() if k != "pixel_values"}
    with pytest.raises(PromptError, match="32 image tokens but no pixel_values"):
        vlm.run(without)
    with pytest.raises(PromptError, match="need 16 image tokens; the prompt holds 32"):
        vlm.run(inputs | {"pixel_values": inputs["pixel_values"][:1]})
