"""Runs with hooks leave the model as it was, and change nothing unless asked."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch

from vlm_lens import Ablate, All, At, HookedVLM, Last
from vlm_lens.engine.firing import Firing, Handler
from vlm_lens.engine.hooks import HookedRun, count_hooks
from vlm_lens.errors import InterventionError
from vlm_lens.points.sites import InputSite, OutputSite

TEXTS = ["Q:<image>\nA:red\n\nQ:<image>\nA:", "Q:Greece\nA:", "What is the colour of <image>?"]
EVERYTHING = "*"


@pytest.fixture
def pictures():
    return [tiny.noise_picture(i, size) for i, size in enumerate([(32, 32), (50, 20), (31, 77)])]


def prompts(vlm: HookedVLM, pictures):
    """One picture, several, none, a padded batch with mixed counts, a processor's own output."""
    yield vlm.prompt("Q:<image>\nA:", pictures[:1])
    yield vlm.prompt(TEXTS[0], pictures[:2])
    yield vlm.prompt("Q:Greece\nA:")
    yield vlm.prompt(TEXTS, pictures)
    raw = vlm.processor(text=TEXTS[2], images=pictures[:1], return_tensors="pt")
    yield vlm.as_prompt(dict(raw))


def test_forward_is_the_plain_forward_bit_for_bit(vlm, pictures):
    for prompt in prompts(vlm, pictures):
        plain = tiny.plain_logits(vlm.hf_model, prompt.inputs)
        assert torch.equal(vlm.run(prompt), plain)
        logits, cache = vlm.run_with_cache(prompt)
        assert torch.equal(logits, plain)
        assert torch.equal(cache["hook_logits"], plain)
        logits, cache = vlm.run_with_cache(prompt, names_filter=EVERYTHING)
        assert torch.equal(logits, plain)
        assert any(n.endswith("hook_pattern") for n in cache)
        seen = []
        watch = [(EVERYTHING, lambda x, hook: seen.append(hook.name))]  # noqa: B023
        if prompt.layouts[0].images:
            assert torch.equal(vlm.run_with_hooks(prompt, fwd_hooks=watch), plain)
            assert len(seen) == len(vlm.points())


def test_a_language_model_too(lm):
    for text in ("Q:Greece\nA:", TEXTS[1:2] * 2 + ["Q:"]):
        prompt = lm.prompt(text)
        plain = tiny.plain_logits(lm.hf_model, prompt.inputs)
        assert torch.equal(lm.run(prompt), plain)
        logits, _ = lm.run_with_cache(prompt, names_filter=EVERYTHING)
        assert torch.equal(logits, plain)


def test_without_a_processor(load, pictures):
    full = load("clip-llama")
    bare = HookedVLM(full.hf_model)
    inputs = full.prompt("Q:<image>\nA:", pictures[:1]).inputs
    assert torch.equal(bare.run(inputs), tiny.plain_logits(full.hf_model, inputs))
    prompt = bare.as_prompt(inputs)
    assert prompt.layout.strings == ()
    assert prompt.layout.image[0].grid.rows == 4


def test_rows_of_a_padded_batch_are_the_single_prompts(vlm, pictures):
    batch = vlm.run(vlm.prompt(TEXTS, pictures))
    single = [
        vlm.run(vlm.prompt(TEXTS[0], pictures[:2])),
        vlm.run(vlm.prompt(TEXTS[1])),
        vlm.run(vlm.prompt(TEXTS[2], pictures[2:])),
    ]
    for row, alone in zip(batch, single, strict=True):
        torch.testing.assert_close(row[-alone.shape[1] :], alone[0], rtol=1e-4, atol=1e-4)


def registry():
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return dict(ALL_ATTENTION_FUNCTIONS._local_mapping), dict(ALL_ATTENTION_FUNCTIONS)


def state(model):
    attention = [getattr(m.config, "_attn_implementation", None)
                 for m in model.modules() if hasattr(m, "config")]  # fmt: skip
    return tiny.hook_state(model), attention, list(model.state_dict()), model.training, registry()


def test_nothing_is_left_behind(vlm, picture):
    model = vlm.hf_model
    prompt = vlm.prompt("Q:<image>\nA:", [picture])
    vlm.run(prompt)  # transformers puts hooks of its own on at the first forward
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    forwards = {n: "forward" in m.__dict__ for n, m in model.named_modules()}
    before, hooks = state(model), count_hooks(model)
    vlm.run_with_cache(prompt, names_filter=EVERYTHING)
    writable = [n for n, p in vlm.points().items() if p.writable]
    vlm.run_with_hooks(prompt, fwd_hooks=[(n, lambda x, hook: x * 0.5) for n in writable])
    vlm.generate(prompt, max_new_tokens=2, interventions=Ablate(writable[-4], at=Last()))

    def broken(x, hook):
        raise KeyboardInterrupt

    for point in writable:
        with pytest.raises(KeyboardInterrupt):
            vlm.run_with_hooks(
                prompt, fwd_hooks=[(EVERYTHING, lambda x, hook: None), (point, broken)]
            )
    assert state(model) == before
    assert count_hooks(model) == hooks
    assert {n: "forward" in m.__dict__ for n, m in model.named_modules()} == forwards
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert torch.equal(vlm.run(prompt), tiny.plain_logits(model, prompt.inputs))


def test_an_error_while_hooks_go_on_takes_them_off_again(clip, monkeypatch):
    before = tiny.hook_state(clip.hf_model)
    points = clip.architecture.points
    handlers = {n: [Handler(lambda x, f: None)] for n in ("hook_embed", "hook_logits")}
    root = type(clip.hf_model)

    def refuse(self, *args, **kwargs):
        raise RuntimeError("no hooks here")

    monkeypatch.setattr(root, "register_forward_hook", refuse)
    with pytest.raises(RuntimeError, match="no hooks"), HookedRun(clip.hf_model, points, handlers):
        pass
    assert tiny.hook_state(clip.hf_model) == before


def test_hooks_of_others_stay_and_see_the_change(llama):
    seen = []
    block = llama.hf_model.model.layers[1]
    handle = block.register_forward_hook(lambda m, a, out: seen.append(tiny.first(out).clone()))
    try:
        llama.run("Q:Greece", interventions=Ablate("blocks.1.hook_resid_post", at=All()))
        assert torch.equal(seen[0], torch.zeros_like(seen[0]))
    finally:
        handle.remove()
    assert not block._forward_hooks or handle.id not in block._forward_hooks


def test_a_write_of_another_shape_is_refused(llama):
    with pytest.raises(InterventionError, match=r"has shape \[1, 2, 3\]"):
        llama.run_with_hooks(
            "Q:Greece", fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: x[:, :, :3])]
        )


def test_a_write_keeps_the_dtype(load):
    vlm = HookedVLM(copy.deepcopy(load("llama").hf_model).bfloat16(), load("llama").processor)
    logits = vlm.run_with_hooks(
        "Q:Greece", fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: x.float() * 1)]
    )
    assert torch.equal(logits, vlm.run("Q:Greece"))


def test_firing_tells_offset_and_point(llama):
    seen: list[Firing] = []
    handler = Handler(lambda x, firing: seen.append(firing), writes=False)
    prompt = llama.prompt("Q:Greece\nA:")
    points = llama.architecture.points
    with HookedRun(
        llama.hf_model, points, {"hook_logits": [handler], "blocks.0.attn.hook_z": [handler]}
    ):
        llama.hf_model.generate(
            **prompt.inputs, max_new_tokens=3, do_sample=False, eos_token_id=None
        )
    offsets = [f.offset for f in seen if f.point.name == "blocks.0.attn.hook_z"]
    assert offsets == [0, prompt.length, prompt.length + 1]
    logits = [f.offset for f in seen if f.point.name == "hook_logits"]
    assert logits == [prompt.length - 1, prompt.length, prompt.length + 1]


def test_a_layer_may_return_a_tensor_or_a_tuple():
    x = torch.randn(2, 3, 4)
    site = OutputSite("module")
    assert site.get(x) is x  # not its first row
    assert site.get((x, None)) is x
    new = torch.zeros_like(x)
    assert site.put(x, new) is new
    assert site.put((x, "rest"), new) == (new, "rest")
    nested = OutputSite("module", path=("hidden_states", 1))
    put = nested.put({"hidden_states": (x, x, x)}, new)["hidden_states"]
    assert put[0] is x
    assert put[1] is new
    assert put[2] is x


def test_an_argument_may_be_positional_or_named():
    site = InputSite("module", keyword="inputs_embeds", index=1)
    assert site.get(("a", "b"), {}) == "b"
    assert site.get(("a",), {"inputs_embeds": "b"}) == "b"
    assert site.get((), {}) is None
    new = torch.zeros(1)
    assert site.put(("a", "b", "c"), {}, new) == (("a", new, "c"), {})
    assert site.put(("a",), {"inputs_embeds": "b", "x": 1}, new) == (
        ("a",),
        {"inputs_embeds": new, "x": 1},
    )


# ---------------------------------------------------------------------- gradients


def test_gradients_with_positions_and_on_another_device_are_those_of_the_whole(vlm, pictures):
    prompt = vlm.prompt(TEXTS, pictures)
    names = ["blocks.*.attn.hook_q", "blocks.1.hook_resid_mid", "blocks.0.attn.hook_pattern"]
    logits, whole = vlm.run_with_cache(prompt, names_filter=names, grad=True)
    full = torch.autograd.grad(logits[:, -1, 7].sum(), list(whole.values()))
    for options in ({}, {"device": "cpu"}):
        logits, kept = vlm.run_with_cache(
            prompt, names_filter=names, positions=At((-1, -3)), grad=True, **options
        )
        found = torch.autograd.grad(logits[:, -1, 7].sum(), list(kept.values()))
        for name, mine, theirs in zip(kept, found, full, strict=True):
            picked = theirs[:, :, [-1, -3]] if "pattern" in name else theirs[:, [-1, -3]]
            torch.testing.assert_close(mine, picked, rtol=1e-4, atol=1e-6)
            assert mine.abs().sum() > 0, name


def test_gradients_are_those_of_a_plain_hook(vlm, pictures):
    prompt = vlm.prompt(TEXTS[0], pictures[:2])
    names = ["blocks.0.attn.hook_v", "blocks.1.attn.hook_z", "vision.blocks.0.attn.hook_k",
             "projector.hook_out", "blocks.0.mlp.hook_post"]  # fmt: skip
    logits, cache = vlm.run_with_cache(prompt, names_filter=names, grad=True)
    found = dict(
        zip(cache, torch.autograd.grad(logits[0, -1, 7], list(cache.values())), strict=True)
    )
    for name in names:
        seen = []
        with tiny.plain_hook(*tiny.where(vlm.hf_model, name), seen.append):
            plain = vlm.hf_model(**prompt.inputs, use_cache=False).logits
        (expected,) = torch.autograd.grad(plain[0, -1, 7], seen[0])
        torch.testing.assert_close(
            found[name].flatten(), expected.flatten(), rtol=1e-4, atol=1e-6, msg=name
        )


def test_gradients_begin_where_weights_are_frozen(load, pictures):
    vlm = HookedVLM(copy.deepcopy(load("clip-llama").hf_model), load("clip-llama").processor)
    prompt = vlm.prompt(TEXTS[0], pictures[:2])
    names = ["vision.hook_embed", "blocks.1.attn.hook_z", "blocks.0.hook_resid_mid"]

    def gradients():
        logits, cache = vlm.run_with_cache(prompt, names_filter=names, grad=True)
        return torch.autograd.grad(logits[0, -1, 7], list(cache.values()))

    expected = gradients()
    vlm.hf_model.requires_grad_(False)
    for mine, theirs in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_a_function_sees_what_the_model_goes_on_with(llama):
    seen = {}
    names = ["blocks.0.attn.hook_q", "blocks.0.attn.hook_pattern", "blocks.1.hook_resid_mid"]

    def look(x, hook):
        seen[hook.name] = x

    logits = llama.run_with_hooks("Q:Greece\nA:", fwd_hooks=[(names, look)], grad=True)
    _, cache = llama.run_with_cache("Q:Greece\nA:", names_filter=names, grad=True)
    other, cache = llama.run_with_cache("Q:Greece\nA:", names_filter=names, grad=True)
    for name in names:
        (mine,) = torch.autograd.grad(logits[0, -1, 7], seen[name], retain_graph=True)
        (theirs,) = torch.autograd.grad(other[0, -1, 7], cache[name], retain_graph=True)
        torch.testing.assert_close(mine, theirs)
        assert mine.abs().sum() > 0


def test_unembed_and_ln_final_are_differentiable(llama):
    x = torch.randn(2, 32, requires_grad=True)
    model = llama.hf_model
    (mine,) = torch.autograd.grad(llama.unembed(llama.ln_final(x))[:, 5].sum(), x)
    (plain,) = torch.autograd.grad(model.lm_head(model.model.norm(x))[:, 5].sum(), x)
    assert torch.equal(mine, plain)
    assert not llama.unembed(llama.ln_final(x.detach())).requires_grad
    with torch.no_grad():
        assert not llama.unembed(llama.ln_final(x)).requires_grad
