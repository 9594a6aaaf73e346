"""Ablation by zero, by a mean, by a value."""

from __future__ import annotations

import pytest
import tiny
import torch
from families.every import VLMS

from vlm_lens import Ablate, All, At, HookedVLM, Images, Last, Mean, Text
from vlm_lens.errors import InterventionError, PositionError, VectorError

TEXTS = ["Q:<image>\nA:red\n\nQ:<image>\nA:", "Q:Peru\nA:", "Q:<image>\nA:"]


@pytest.fixture
def batch(vlm):
    return vlm.prompt(TEXTS, [tiny.noise_picture(i) for i in range(3)])


def test_zero(vlm, batch):
    def cut(x):
        x = x.clone()
        x[:, -1] = 0
        return x

    for name in ("blocks.0.hook_attn_out", "blocks.1.mlp.hook_pre", "hook_merged"):
        expected = tiny.plain_write(vlm.hf_model, batch.inputs, name, cut)
        assert torch.equal(vlm.run(batch, interventions=Ablate(name, at=Last())), expected)


def test_the_mean_is_that_of_each_row_without_padding(vlm, batch):
    name = "blocks.0.hook_mlp_out"
    _, plain = vlm.run_with_cache(batch, names_filter=name)
    for at in (Last(), All(), At(-2)):
        _, made = vlm.run_with_cache(
            batch, names_filter=name, interventions=Ablate(name, at, "prompt_mean")
        )
        for row, layout in enumerate(batch.layouts):
            mean = plain[name][row, layout.start :].mean(0)
            places = [p for _, p in at.resolve(layout)]
            torch.testing.assert_close(
                made[name][row, places], mean.expand(len(places), -1), rtol=1e-5, atol=1e-6
            )
            rest = [p for p in range(batch.length) if p not in places]
            assert torch.equal(made[name][row, rest], plain[name][row, rest])


def test_the_mean_in_the_tower_is_that_of_each_picture(vlm, batch):
    name = "vision.blocks.0.attn.hook_z"
    prompt = vlm.prompt(TEXTS[0], [tiny.noise_picture(i) for i in range(2)])
    _, plain = vlm.run_with_cache(prompt, names_filter=name)
    edit = Ablate(name, at=Images(1), by="mean", heads=2)
    _, made = vlm.run_with_cache(prompt, names_filter=name, interventions=edit)
    expected = plain[name].clone()
    expected[1, :, 2] = plain[name][1, :, 2].mean(0)
    torch.testing.assert_close(made[name], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(made[name][0], plain[name][0])


def test_a_mean_of_patterns_is_refused(vlm, batch, no_forward):
    no_forward(vlm)
    with pytest.raises(InterventionError, match="mixes queries"):
        vlm.run(batch, interventions=Ablate("blocks.0.attn.hook_pattern", at=Last(), by="mean"))


def test_a_mean_that_could_be_two_is_refused(vlm, batch, no_forward):
    no_forward(vlm)
    for at in (All(), At((8,)), Images(0)):
        prompt = vlm.prompt(TEXTS[0], [tiny.noise_picture(i) for i in range(2)])
        with pytest.raises(InterventionError, match="'picture_mean' or by='prompt_mean'"):
            vlm.run(prompt, interventions=Ablate("hook_merged", at, by="mean"))
    with pytest.raises(InterventionError, match="write by='picture_mean'"):
        vlm.run(prompt, interventions=Ablate("projector.hook_out", All(), by="prompt_mean"))
    with pytest.raises(InterventionError, match="belongs to no picture"):
        vlm.run(batch, interventions=Ablate("hook_merged", Last(), by="picture_mean"))
    with pytest.raises(InterventionError, match="it got 'average'"):
        Ablate("hook_merged", Last(), by="average")


def test_where_a_mean_can_be_one_only(vlm):
    prompt = vlm.prompt(TEXTS[0], [tiny.noise_picture(i) for i in range(2)])
    for name, at, by in (
        ("blocks.0.hook_mlp_out", Text(), "prompt_mean"),
        ("projector.hook_out", Images(1), "picture_mean"),
    ):
        plain, named = (vlm.run(prompt, interventions=Ablate(name, at, b)) for b in ("mean", by))
        torch.testing.assert_close(plain, named, rtol=1e-5, atol=1e-5)


def test_the_mean_of_a_picture_is_the_same_before_and_after_the_merge(vlm):
    prompt = vlm.prompt(TEXTS[0], [tiny.noise_picture(i) for i in range(2)])
    before, after = (
        vlm.run(prompt, interventions=Ablate(name, Images(1), "picture_mean"))
        for name in ("projector.hook_out", "hook_merged")
    )
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5)
    whole = vlm.run(prompt, interventions=Ablate("hook_merged", Images(1), "prompt_mean"))
    assert (whole - after).abs().max() > 1e-2


PACKED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "mistral3")


def _lengths(inputs) -> list[int]:
    """Patches of each picture in the tower's one sequence."""
    if "image_grid_thw" in inputs:
        return inputs["image_grid_thw"].prod(-1).tolist()
    return (inputs["image_sizes"] // 4).prod(-1).tolist()


def _plain_mean(model, inputs, path: str, picture: int) -> torch.Tensor:
    """Logits where one picture's part of a module's output is its mean, by a plain hook."""
    lengths = _lengths(inputs)
    start = sum(lengths[:picture])

    def average(module, args, output):
        x = output.clone()
        part = x[..., start : start + lengths[picture], :]
        part[:] = part.mean(-2, keepdim=True)
        return x

    handle = model.get_submodule(path).register_forward_hook(average, prepend=True)
    try:
        with torch.no_grad():
            return model(**inputs, use_cache=False).logits
    finally:
        handle.remove()


@pytest.mark.parametrize("name", PACKED)
def test_the_mean_in_a_packed_tower_is_that_of_each_picture(name, tmp_path):
    # in float64, where nothing but a fault shows: what is compared differs by rounding alone
    loaded = VLMS[name].load(tmp_path)
    vlm = HookedVLM(loaded.hf_model.double(), loaded.processor)
    close = {"rtol": 1e-5, "atol": 1e-5}  # angles, norms and softmax stay in float32
    pictures = [
        tiny.noise_picture(i, size) for i, size in enumerate([(24, 16), (16, 32), (24, 24)])
    ]
    texts = ["Q:<image>b<image>A:", "Q:<image>A:x"]
    batch = vlm.prompt(texts, [pictures[:2], pictures[2:]])
    point = "vision.blocks.0.hook_mlp_out"
    path = vlm.points()[point].site.module
    edit = Ablate(point, at=Images(0), by="mean")
    # the first picture of each row, one after the other: ops do not meet
    expected = [_plain_mean(vlm.hf_model, batch.inputs, path, n)[r] for r, n in ((0, 0), (1, 2))]
    found = vlm.run(batch, interventions=edit)
    for row in range(2):
        torch.testing.assert_close(found[row], expected[row], rtol=1e-12, atol=1e-12)
    singles = [vlm.prompt(texts[0], pictures[:2]), vlm.prompt(texts[1], pictures[2:])]
    for row, single in enumerate(singles):
        alone = vlm.run(single, interventions=edit)[0]
        torch.testing.assert_close(found[row, -len(alone) :], alone, **close)
    sweep = {
        engine: vlm.sweep(
            batch, [edit, Ablate(point, Images(), "mean")],
            measure="logits", engine=engine, progress=False,
        ).stack("logits")
        for engine in ("replay", "full")
    }  # fmt: skip
    torch.testing.assert_close(sweep["replay"], sweep["full"], **close)
    torch.testing.assert_close(sweep["full"][:2, 0], found[:, -1], **close)


def test_a_mean_over_pieces_of_a_prompt_is_refused(llama):
    prompt = llama.prompt("Q:Greece\nA:Athens Q:Peru")
    edit = Ablate("blocks.0.hook_mlp_out", Last(), "mean")
    with pytest.raises(InterventionError, match="in pieces"):
        llama.generate(prompt, max_new_tokens=2, interventions=edit, prefill_chunk_size=4)
    with pytest.raises(InterventionError, match="last_logits"):
        llama.run_with_cache(
            prompt, last_logits=1, interventions=Ablate("hook_logits", Last(), "mean")
        )


def test_the_mean_of_a_data_set(clip, tmp_path):
    prompts = [
        clip.prompt(text, [tiny.noise_picture(i) for i in range(text.count("<image>"))])
        for text in TEXTS
    ]
    names = ["blocks.0.attn.hook_z", "blocks.1.hook_mlp_out"]
    mean = Mean.of(clip, prompts, names)
    plain = [tiny.plain_read(clip.hf_model, p.inputs, names) for p in prompts]
    for name in names:
        every = torch.cat([p[name][0] for p in plain])
        assert mean.counts[name] == len(every)
        found = mean.values[name].data.flatten()
        torch.testing.assert_close(found, every.mean(0), rtol=1e-5, atol=1e-6)

    def write(x):
        x = x.clone()
        x[:, -1] = mean.values[names[0]].data.flatten()
        return x

    edit = Ablate(names[0], Last(), by=mean)
    expected = tiny.plain_write(clip.hf_model, prompts[0].inputs, names[0], write)
    assert torch.equal(clip.run(prompts[0], interventions=edit), expected)
    edit.save(tmp_path / "mean")
    assert Ablate.load(tmp_path / "mean") == edit
    with pytest.raises(VectorError, match="not read at blocks.0.hook_mlp_out"):
        clip.run(prompts[0], interventions=Ablate("blocks.0.hook_mlp_out", Last(), by=mean))
    pictures = Mean.of(clip, [prompts[0], prompts[2]], "projector.hook_out", at=Images())
    assert pictures.counts == {"projector.hook_out": 3 * 16}
    with pytest.raises(PositionError):
        Mean.of(clip, prompts, "hook_merged", at=Images())
    with pytest.raises(VectorError, match="at least one prompt"):
        Mean.of(clip, [], "hook_merged")
    with pytest.raises(VectorError, match="mixes queries"):
        Mean.of(clip, prompts, "blocks.0.attn.hook_pattern")
