"""Every point of LLaVA, over both towers and three language models."""

from __future__ import annotations

import pytest
import tiny
import torch

from families import conformance
from vlm_lens import Ablate, All, At, HookedVLM, Patches
from vlm_lens.errors import InterventionError, PointError, PromptError

TEXT = "Q:<image>\nA:red\n\nQ:<image>\nA:"


@pytest.fixture(params=tiny.VLMS)
def vlm(request, load) -> HookedVLM:
    return load(request.param)


@pytest.fixture
def prompt(vlm):
    return vlm.prompt(TEXT, [tiny.noise_picture(0, (40, 30)), tiny.noise_picture(1, (20, 60))])


@pytest.fixture
def batch(vlm):
    pictures = [tiny.noise_picture(i) for i in range(3)]
    return vlm.prompt([TEXT, "Q:Greece\nA:", "Q:<image>\nA:"], pictures)


def test_reads(vlm, prompt, batch):
    conformance.check_reads(vlm, prompt)
    conformance.check_reads(vlm, batch)


def test_writes(vlm, prompt):
    conformance.check_writes(vlm, prompt)


def test_patching_back(vlm, prompt):
    conformance.check_patching_back(vlm, prompt)


@pytest.mark.parametrize("name", tiny.VLMS)
def test_the_first_forward(name):
    def make(vlm):
        return vlm.prompt("Q:<image>\nA:", [tiny.noise_picture()])

    conformance.check_cold(tiny.build(name), tiny.reader(name), make)


def test_the_layer_that_the_projector_reads(vlm, prompt):
    read = vlm.cfg.vision.n_layers_read
    plain = tiny.plain_logits(vlm.hf_model, prompt.inputs)
    for name in (f"vision.blocks.{read - 1}.hook_resid_post", "vision.hook_out"):
        changed = vlm.run(prompt, interventions=Ablate(name, at=All()))
        with torch.no_grad():
            zero = torch.zeros(2, 16, vlm.cfg.vision.d_model)
            features = vlm.hf_model.model.multi_modal_projector(zero)
        by_hand = tiny.plain_write(
            vlm.hf_model, prompt.inputs, "projector.hook_out", lambda x, f=features: f
        )
        assert torch.equal(changed, by_hand)
        assert not torch.equal(changed, plain)


def test_blocks_that_nothing_reads(vlm, prompt):
    barred = conformance.check_read_only(vlm, prompt)
    read = vlm.cfg.vision.n_layers_read
    assert {n.split(".")[2] for n in barred} == {str(i) for i in range(read, 3)}
    for name in barred:
        with pytest.raises(PointError, match=f"the projector reads block {read - 1}"):
            vlm.run(prompt, interventions=Ablate(name, at=All()))
        with pytest.raises(InterventionError, match="no effect"):
            vlm.run_with_hooks(prompt, fwd_hooks=[(name, lambda x, hook: x * 0)])
        vlm.run_with_hooks(prompt, fwd_hooks=[(name, lambda x, hook: None)])


@pytest.mark.parametrize(
    ("layers", "read"), [(-1, [3]), (1, [1]), (-4, [0]), ([-2, 1], [2, 1]), ([-1], [3])]
)
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_other_feature_layers(tower, layers, read):
    model = tiny.build(f"{tower}-llama", vision_feature_layer=layers)
    vlm = HookedVLM(model, tiny.reader(f"{tower}-llama"))
    prompt = vlm.prompt("Q:<image>\nA:", [tiny.noise_picture()])
    assert vlm.cfg.vision.n_layers_read == max(read)
    plain, cache = vlm.run_with_cache(prompt, names_filter="*")
    assert torch.equal(plain, tiny.plain_logits(model, prompt.inputs))
    for name, point in vlm.points("vision.*").items():
        changed = vlm.run_with_hooks(prompt, fwd_hooks=[(name, lambda x, hook: None)])
        assert torch.equal(changed, plain)
        if point.writable:
            changed = vlm.run_with_hooks(
                prompt, fwd_hooks=[(name, lambda x, hook: conformance.noise(x))]
            )
            assert not torch.equal(changed, plain), name
    if isinstance(layers, int):
        residual = "vision.blocks.0.hook_resid_pre"
        if read[0]:
            residual = f"vision.blocks.{read[0] - 1}.hook_resid_post"
        assert torch.equal(cache["vision.hook_out"], cache[residual])
    elif len(layers) > 1:
        with pytest.raises(PointError, match="several layers"):
            vlm.points("vision.hook_out")
        start = 1 if tower == "clip" else 0
        parts = [cache[f"vision.blocks.{i - 1}.hook_resid_post"][:, start:] for i in read]
        assert torch.equal(cache["projector.hook_in"], torch.cat(parts, -1))


def test_sum_of_parts_is_the_residual_stream_at_every_position(vlm, batch):
    _, cache = vlm.run_with_cache(batch)
    total = cache["hook_merged"].double()
    for layer in range(vlm.cfg.n_layers):
        total = total + cache["attn_out", layer] + cache["mlp_out", layer]
    residual = cache["resid_post", vlm.cfg.n_layers - 1].double()
    torch.testing.assert_close(total, residual, rtol=1e-5, atol=1e-5)
    for layout in batch.layouts:
        for image in layout.images:
            places = list(image.positions)
            merged, embed = (cache[n][layout.row, places] for n in ("hook_merged", "hook_embed"))
            assert (merged - embed).abs().max() > 0.1  # the picture is in the sum
            number = image.projector.sequences[0][0]
            assert torch.equal(merged, cache["projector.hook_out"][number])


def test_residual_stream_is_one_stream(vlm, prompt):
    _, cache = vlm.run_with_cache(prompt)
    for prefix, layers in (("", vlm.cfg.n_layers), ("vision.", vlm.cfg.vision.n_layers)):
        for layer in range(layers):
            block = f"{prefix}blocks.{layer}."
            if layer:
                previous = cache[f"{prefix}blocks.{layer - 1}.hook_resid_post"]
                assert torch.equal(previous, cache[block + "hook_resid_pre"])
            middle = cache[block + "hook_resid_pre"] + cache[block + "hook_attn_out"]
            assert torch.equal(middle, cache[block + "hook_resid_mid"])
            after = middle + cache[block + "hook_mlp_out"]
            assert torch.equal(after, cache[block + "hook_resid_post"])


def test_one_head_alone(vlm, prompt):
    module, _ = tiny.where(vlm.hf_model, "blocks.1.attn.hook_z")
    for head in range(4):

        def cut(x, head=head):
            x = x.clone()
            x[..., head * 8 : head * 8 + 8] = 0
            return x

        expected = tiny.plain_write(vlm.hf_model, prompt.inputs, "blocks.1.attn.hook_z", cut)
        patch = Ablate("blocks.1.attn.hook_z", at=All(), heads=head)
        assert torch.equal(vlm.run(prompt, interventions=patch), expected)


def test_a_vision_write_at_one_patch_of_the_second_picture(vlm, prompt):
    start = vlm.cfg.vision.n_class_tokens

    def cut(x):
        x = x.clone()
        x[1, start + 1 * 4 + 2] = 0
        return x

    name = "vision.blocks.0.hook_resid_post"
    expected = tiny.plain_write(vlm.hf_model, prompt.inputs, name, cut)
    patch = Ablate(name, at=Patches(1, rows=1, cols=2))
    assert torch.equal(vlm.run(prompt, interventions=patch), expected)
    by_number = vlm.run_with_hooks(prompt, fwd_hooks=[(name, lambda x, hook: cut(x))])
    assert torch.equal(by_number, expected)
    # a position by number means that position in each picture
    both = vlm.run(prompt, interventions=Ablate(name, at=At(start + 6)))

    def cut_both(x):
        x = x.clone()
        x[:, start + 6] = 0
        return x

    assert torch.equal(both, tiny.plain_write(vlm.hf_model, prompt.inputs, name, cut_both))


def test_image_tokens_and_pictures_must_match(vlm, picture, no_forward):
    inputs = vlm.prompt("Q:<image>\nA:", [picture]).inputs
    no_forward(vlm)
    without = {k: v for k, v in inputs.items() if k != "pixel_values"}
    with pytest.raises(PromptError, match="16 image tokens but no pixel_values"):
        vlm.run(without)
    doubled = inputs | {"pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1)}
    with pytest.raises(PromptError, match=r"2 picture\(s\) .* need 32 image tokens"):
        vlm.run(doubled)


def test_image_tokens_split_wrongly_over_rows(siglip, picture):
    inputs = siglip.prompt(["Q:<image>\nA:", "Q:<image>\nA:"], [picture, picture]).inputs
    ids = inputs["input_ids"].clone()
    place = (ids[0] == 4).nonzero()[0]
    free = (ids[1] != 4).nonzero()[0]
    ids[0, place], ids[1, free] = 7, 4
    with pytest.raises(PromptError, match="image token"):
        siglip.run(inputs | {"input_ids": ids})
