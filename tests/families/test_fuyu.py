"""Mantis-Fuyu: no tower, several pictures a text, weights under their old names."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import AutoModelForImageTextToText

from families import bench, tiny_fuyu
from vlm_lens import Ablate, HookedVLM, Patches
from vlm_lens.errors import PointError, PromptError
from vlm_lens.families.parts.fuyu_processor import FuyuReader

TEXT = "Q:<image>b<image>\nA:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_fuyu.save(tmp_path_factory.mktemp("mantis"))


@pytest.fixture(scope="module")
def vlm(folder) -> HookedVLM:
    return HookedVLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def pictures():
    return [bench.grey((24, 16)), bench.grey((12, 30))]


def test_old_weight_names(folder, vlm):
    _, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    loaded = vlm.hf_model.state_dict()
    for name, weight in tiny_fuyu.build().state_dict().items():
        assert torch.equal(loaded[name], weight), name
    assert isinstance(vlm.processor, FuyuReader) and vlm.processor.mantis


def test_prompt_form(vlm, pictures):
    patches = ["|IMAGE|"] + (["|SPEAKER|"] * 4 + ["|NEWLINE|"]) * 3 + ["|ENDOFIMAGE|"]
    second = ["|IMAGE|"] + (["|SPEAKER|"] * 2 + ["|NEWLINE|"]) * 5 + ["|ENDOFIMAGE|"]
    expected = ["<s>", *"Q:image 0: ", *patches, "<s>", *"bimage 1: ", *second, "<s>", *"\nA:"]
    assert list(vlm.prompt(TEXT, pictures).layout.strings) == expected
    no_end = vlm.prompt("<image>", pictures[:1]).layout
    assert list(no_end.strings) == ["<s>", *"image 0: ", *patches]
    assert list(vlm.prompt("Q:x").layout.strings) == [*"Q:x"]
    row = vlm.prompt(["<image>A", "Q:x"], pictures[:1]).layouts[1]
    assert [s for s, k in zip(row.strings, row.kinds, strict=True) if k != "pad"] == [*"Q:x"]


def test_geometry_of_a_large_picture(vlm, pictures):
    large = bench.grey((200, 100))  # made to fit 90 x 60
    bench.check_painting(vlm, TEXT, [large, pictures[0]], 0, step=5)
    layout = vlm.prompt(TEXT, [large, pictures[0]]).layout
    assert (layout.image[0].grid.rows, layout.image[0].grid.cols) == (8, 15)
    assert layout.image[0].pixels(layout.image[0].patch(0, 1)) == pytest.approx(
        (6 / 0.45, 0, 12 / 0.45, 6 / 0.45)
    )


def test_pixels_of_a_patch(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    cache = vlm.run_with_cache(prompt, names_filter="projector.*")[1]
    grid = prompt.layout.image[1].projector.grid()
    x0, y0, x1, y1 = (int(v) for v in grid.pixels(grid.patch(2, 1)))
    pixels = torch.tensor(list(pictures[1].crop((x0, y0, x1, y1)).tobytes())) / 255
    found = cache["projector.hook_in"][0, grid.patch(2, 1)]
    torch.testing.assert_close(found, (pixels - 0.5) / 0.5)
    by_hand = vlm.hf_model.model.vision_embed_tokens(cache["projector.hook_in"])
    torch.testing.assert_close(cache["projector.hook_out"], by_hand)


def test_marks_and_newlines_belong_to_the_picture_and_to_no_patch(vlm, pictures):
    layout = vlm.prompt(TEXT, pictures).layout
    image = layout.image[0]
    assert list(image.positions) == layout.of_kind("image 0")
    assert len(image.positions) == 3 * 5 + 2 and len(image.grid.positions) == 12
    assert {layout.strings[p] for p in image.grid.positions} == {"|SPEAKER|"}


def test_writes(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    names = ["projector.hook_in", "projector.hook_out", "hook_merged", "blocks.1.attn.hook_q"]
    bench.check_writes_act(vlm, prompt, names)
    patch = Ablate("projector.hook_out", at=Patches(1, rows=1, cols=1))
    cache = vlm.run_with_cache(prompt, names_filter=["hook_merged"], interventions=patch)[1]
    place = prompt.layout.image[1].patch(1, 1)
    zero = (cache["hook_merged"][0] == 0).all(-1).nonzero().flatten().tolist()
    assert zero == [place]
    image = prompt.layout.image[0]
    bench.check_pattern_edit(vlm, prompt, "blocks.0.attn.hook_pattern", (0, image.patch(1, 2)))


def test_queries_keys_and_values_are_interleaved_by_head(vlm, pictures):
    prompt = vlm.prompt(TEXT, pictures)
    names = ["blocks.0.ln1.hook_normalized", *(f"blocks.0.attn.hook_{n}" for n in "qkv")]
    cache = vlm.run_with_cache(prompt, names_filter=names)[1]
    fused = vlm.hf_model.model.language_model.layers[0].self_attn.query_key_value
    whole = fused(cache[names[0]]).unflatten(-1, (4, 3, 8))
    for part, name in enumerate(names[1:]):
        torch.testing.assert_close(cache[name], whole[..., part, :])


def test_what_is_missing(vlm, pictures):
    with pytest.raises(PointError, match="no vision tower"):
        vlm.points("vision.hook_out")
    with pytest.raises(Exception, match="no vision tower"):
        vlm.prompt(TEXT, pictures).layout.image[0].vision.grid()


def test_errors(vlm, pictures, no_forward):
    inputs = vlm.prompt(TEXT, pictures).inputs
    no_forward(vlm)
    without = {k: v for k, v in inputs.items() if k != "pixel_values"}
    with pytest.raises(PromptError, match="22 image tokens but no pixel_values"):
        vlm.run(without)
    with pytest.raises(PromptError, match="7 patches of pixels, and the prompt holds 22"):
        vlm.run(inputs | {"pixel_values": inputs["pixel_values"][:7]})
    with pytest.raises(PromptError, match="2 <image> placeholders and 1 picture"):
        vlm.run(TEXT, images=pictures[:1])


def test_fuyu_itself(tmp_path):
    vlm = HookedVLM.from_pretrained(tiny_fuyu.save(tmp_path, mantis=False))
    picture = bench.grey((24, 16))
    prompt = vlm.prompt("<image>ab", [picture])
    rows = (["|SPEAKER|"] * 4 + ["|NEWLINE|"]) * 3
    assert list(prompt.layout.strings) == [*rows, "<s>", "a", "b", "<0x04>"]
    with pytest.raises(PromptError, match="one picture a text"):
        vlm.prompt("a<image>", [tiny.noise_picture()])
    bench.check_conforms(vlm, prompt, quick=True)
    bench.check_painting(vlm, "<image>ab", [picture], 0)
