"""HookedVLM: reading, writing, contexts, and TransformerLens's habits."""

from __future__ import annotations

import sys
import warnings

import pytest
import tiny
import torch
from typecheck import unchecked

import vlm_lens
from vlm_lens import Ablate, All, HookedVLM, Last, Steer
from vlm_lens.errors import InterventionError, ModelError, PointError, PositionError
from vlm_lens.interventions import compose

P = "blocks.1.hook_resid_post"
TEXT = "Q:Greece\nA:Athens\n\nQ:Peru\nA:"


def test_sizes(vlm):
    cfg, config = vlm.cfg, vlm.hf_model.config
    text, vision = config.text_config, config.vision_config
    assert (cfg.n_layers, cfg.d_model, cfg.n_heads) == (
        text.num_hidden_layers, text.hidden_size, text.num_attention_heads,
    )  # fmt: skip
    assert (cfg.d_vocab, cfg.d_mlp, cfg.d_head) == (text.vocab_size, text.intermediate_size, 8)
    assert cfg.n_key_value_heads == text.num_key_value_heads == 2
    v = cfg.vision
    assert (v.n_layers, v.d_model, v.n_heads) == (3, vision.hidden_size, 3)
    assert (v.image_size, v.patch_size) == (vision.image_size, vision.patch_size)
    assert v.n_class_tokens == (1 if vision.model_type == "clip_vision_model" else 0)
    assert v.n_layers_read == (2 if vision.model_type == "clip_vision_model" else 3)
    assert "vision tower" in repr(vlm)
    shown = vlm._repr_html_()
    assert all(group in shown for group in vlm.points().groups()) and "<details>" in shown
    assert f"{vlm.cfg.n_layers} layers" in shown


# ---------------------------------------------------------------------- TransformerLens's habits


def test_functions_that_return_and_functions_that_edit_in_place(model):
    names = [
        "blocks.0.attn.hook_z",
        "blocks.1.hook_mlp_out",
        "hook_embed",
        "blocks.0.mlp.hook_post",
    ]
    prompt = model.prompt(TEXT)

    def returns(x, hook):
        x = x.clone()
        x[:, 1] = 0
        return x

    def in_place(x, hook):
        x[:, 1] = 0

    def both(x, hook):
        x[:, 1] = 0
        return x

    def behind_autograd(x, hook):
        x.data[:, 1] = 0

    def in_numpy(x, hook):
        x.numpy()[:, 1] = 0

    for name in names:
        cut = tiny.plain_write(model.hf_model, prompt.inputs, name, lambda x: returns(x, None))
        for fn in (returns, in_place, both, behind_autograd, in_numpy):
            logits = model.run_with_hooks(prompt, fwd_hooks=[(name, fn)])
            assert torch.equal(logits, cut), (name, fn.__name__)


def test_an_edit_does_not_reach_what_was_read_before(clip):
    prompt = clip.prompt(TEXT)
    kept = {}

    def keep(x, hook):
        kept[hook.name] = x

    def spoil(x, hook):
        x.zero_()

    with clip.hooks([(P, keep), (P, spoil)]):
        _, cache = clip.run_with_cache(prompt)
    _, plain = clip.run_with_cache(prompt)
    assert torch.equal(kept[P], plain[P])
    assert torch.equal(cache[P], torch.zeros_like(plain[P]))
    assert torch.equal(cache["blocks.1.hook_mlp_out"], plain["blocks.1.hook_mlp_out"])


def test_names_may_be_globs_functions_lists_and_short_forms(clip):
    for names, expected in [
        ("blocks.*.hook_mlp_out", ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"]),
        (lambda n: n.endswith("0.hook_mlp_out") and "vision" not in n, ["blocks.0.hook_mlp_out"]),
        (("mlp_out", 1), ["blocks.1.hook_mlp_out"]),
        ([("mlp_out", 1), "hook_embed"], ["hook_embed", "blocks.1.hook_mlp_out"]),
    ]:
        seen = []
        clip.run_with_hooks(TEXT, fwd_hooks=[(names, lambda x, hook: seen.append(hook.name))])  # noqa: B023
        assert seen == expected


def test_the_hook_argument(clip):
    seen = []

    def look(x, hook):
        hook.ctx["count"] = hook.ctx.get("count", 0) + 1
        seen.append((hook.name, hook.layer(), hook.ctx["count"]))

    clip.run_with_hooks(TEXT, fwd_hooks=[("blocks.*.hook_mlp_out", look)])
    clip.run_with_hooks(TEXT, fwd_hooks=[("blocks.0.hook_mlp_out", look)])
    assert seen == [("blocks.0.hook_mlp_out", 0, 1), ("blocks.1.hook_mlp_out", 1, 1),
                    ("blocks.0.hook_mlp_out", 0, 1)]  # fmt: skip
    with pytest.raises(InterventionError, match="belongs to no layer"):
        clip.run_with_hooks(TEXT, fwd_hooks=[("hook_embed", lambda x, hook: hook.layer() and None)])
    with pytest.raises(InterventionError, match="returned a float"):
        clip.run_with_hooks(TEXT, fwd_hooks=[("hook_embed", lambda x, hook: 1.0)])


def test_functions_are_called_after_interventions(clip):
    seen = []
    clip.run_with_hooks(
        TEXT, fwd_hooks=[(P, lambda x, hook: seen.append(x.abs().max()))],
        interventions=Ablate(P, at=All()),
    )  # fmt: skip
    assert seen[0] == 0


def test_under_inference_mode(clip):
    plain = clip.run(TEXT)
    with torch.inference_mode():
        assert torch.equal(clip.run_with_hooks(TEXT, fwd_hooks=[(P, lambda x, hook: None)]), plain)
        zero = clip.run_with_hooks(TEXT, fwd_hooks=[(P, lambda x, hook: x * 0)])
    assert torch.equal(zero, clip.run(TEXT, interventions=Ablate(P, at=All())))


# ---------------------------------------------------------------------- contexts


def test_contexts_nest_and_end(clip):
    plain = clip.run(TEXT)
    one, two = Ablate("blocks.0.hook_mlp_out", at=Last()), Steer(P, at=Last(), vector=1.0)
    with clip.intervening(one) as inside:
        assert inside is clip
        assert torch.equal(clip.run(TEXT), clip_run := _fresh(clip).run(TEXT, interventions=one))
        with clip.intervening([two]):
            both = clip.run(TEXT)
            assert torch.equal(both, _fresh(clip).run(TEXT, interventions=[one, two]))
            assert torch.equal(clip.run_with_cache(TEXT)[0], both)
        assert torch.equal(clip.run(TEXT), clip_run)
        with clip.hooks([(P, lambda x, hook: x * 0)]):
            zero = clip.run(TEXT)
        assert torch.equal(zero, _fresh(clip).run(TEXT, interventions=Ablate(P, at=All())))
    assert torch.equal(clip.run(TEXT), plain)
    with pytest.raises(KeyError), clip.intervening(one), clip.hooks([(P, lambda x, hook: x * 0)]):
        raise KeyError
    assert torch.equal(clip.run(TEXT), plain)


def _fresh(vlm):
    return HookedVLM(vlm.hf_model, vlm.processor)


def test_order_of_interventions(clip):
    set_then_add = [Ablate(P, at=All()), Steer(P, at=All(), vector=1.0)]
    _, cache = clip.run_with_cache(TEXT, names_filter=P, interventions=set_then_add)
    assert torch.equal(cache[P], torch.ones_like(cache[P]))
    _, cache = clip.run_with_cache(TEXT, names_filter=P, interventions=set_then_add[::-1])
    assert torch.equal(cache[P], torch.zeros_like(cache[P]))


# ---------------------------------------------------------------------- gradients


def test_gradients(clip):
    logits, cache = clip.run_with_cache(TEXT, names_filter=[P, "hook_merged"], grad=True)
    assert logits.requires_grad
    (gradient,) = torch.autograd.grad(logits[0, -1, 7], cache[P])
    weight = clip.hf_model.lm_head.weight[7]
    residual = cache[P].detach().requires_grad_()
    (by_hand,) = torch.autograd.grad(
        clip.hf_model.model.language_model.norm(residual)[0, -1] @ weight, residual
    )
    torch.testing.assert_close(gradient, by_hand)
    assert not clip.run(TEXT).requires_grad


# ---------------------------------------------------------------------- refused, before any compute


def test_a_name_that_is_none(vlm, no_forward):
    no_forward(vlm)
    for ask in (
        lambda n: vlm.run(TEXT, interventions=Ablate(n, at=Last())),
        lambda n: vlm.run_with_cache(TEXT, names_filter=n),
        lambda n: vlm.run_with_hooks(TEXT, fwd_hooks=[(n, lambda x, hook: None)]),
        vlm.points,
    ):
        with pytest.raises(PointError, match=r"Did you mean 'blocks\.1\.hook_resid_post'"):
            ask("blocks.1.resid_post")
        with pytest.raises(PointError, match="No point matches"):
            ask("blocks.*.hook_residpost")
        with pytest.raises(PointError, match="There is no point 'blocks.2.hook_resid_post'"):
            ask("blocks.2.hook_resid_post")


def test_places_that_are_none(vlm, no_forward):
    no_forward(vlm)
    for intervention, error, message in [
        (Ablate(P, at=400), PositionError, "not in this prompt"),
        (Ablate("vision.hook_out", at=All()), PositionError, "no picture"),
        (Ablate("vision.hook_out", at=Last()), PositionError, "place in the text"),
        (Ablate(P, at=Last(), heads=0), PointError, "no axis of heads"),
        (Ablate("blocks.1.attn.hook_z", at=Last(), heads=4), PointError, r"heads 0\.\.3"),
    ]:
        with pytest.raises(error, match=message):
            vlm.run(TEXT, interventions=intervention)
    batch = [TEXT, "Q:"]
    with pytest.raises(PositionError, match=r"row 1 of the batch\).*does not occur"):
        vlm.run(batch, interventions=Ablate(P, at=vlm_lens.Find("Peru")))


def test_an_intervention_that_is_none(clip, no_forward):
    no_forward(clip)
    with pytest.raises(InterventionError, match="Plain functions go to run_with_hooks"):
        unchecked(compose)([lambda x: x])
    with pytest.raises(InterventionError, match="must name at least one head"):
        Ablate("blocks.1.attn.hook_z", at=Last(), heads=())
    with pytest.raises(InterventionError, match="A value is a number, a tensor"):
        vlm_lens.ActivationPatch(P, at=Last(), value="zero")
    with pytest.raises(InterventionError, match="'zero', 'prompt_mean', 'picture_mean'"):
        Ablate(P, at=Last(), by="noise")


def test_a_function_at_a_vision_point_without_a_picture(clip, no_forward):
    no_forward(clip)
    with pytest.raises(vlm_lens.VLMLensError):
        clip.run_with_hooks(TEXT, fwd_hooks=[("vision.hook_out", lambda x, hook: x * 0)])


def test_a_family_that_nobody_describes():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=10)
    config.model_type = "unheard_of"
    assert HookedVLM(GPT2LMHeadModel(config).eval()).cfg.n_layers == 1  # found by its structure


def test_a_model_that_is_no_language_model():
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    with pytest.raises(ModelError, match="no output layer over a vocabulary.*load the checkpoint"):
        HookedVLM(ResNetForImageClassification(config))


def test_a_model_in_training_mode_is_noticed():
    model = tiny.build("clip-llama", vision={"attention_dropout": 0.1}).train()
    model.add_module("extra", torch.nn.Dropout(0.5))
    with pytest.warns(UserWarning, match=r"dropout \(.*call eval\(\)"):
        HookedVLM(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HookedVLM(model.eval())


# ---------------------------------------------------------------------- imports


def test_torchvision_is_not_needed(vlm, picture):
    vlm.run("Q:<image>\nA:", [picture])
    assert "torchvision" not in sys.modules


def test_public_names():
    for name in vlm_lens.__all__:
        assert getattr(vlm_lens, name) is not None
        assert name in dir(vlm_lens)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = vlm_lens.nonsense
