"""Generation under interventions, against loops written by hand."""

from __future__ import annotations

import pytest
import tiny
import torch

from vlm_lens import Ablate, ActivationPatch, All, At, Find, Generated, Images, Last, Steer
from vlm_lens.errors import InterventionError, PromptError
from vlm_lens.hooked.generation import Generation

TEXTS = ["Q:<image>\nA:red\n\nQ:<image>\nA:", "Q:Greece\nA:", "What is the colour of <image>?"]
NEW = 5
GREEDY = {"max_new_tokens": NEW, "eos_token_id": None}


@pytest.fixture
def prompt(vlm):
    return vlm.prompt(TEXTS[0], [tiny.noise_picture(i) for i in range(2)])


@pytest.fixture
def batch(vlm):
    return vlm.prompt(TEXTS, [tiny.noise_picture(i) for i in range(3)])


def direction(vlm, size=6.0):
    return size * torch.randn(vlm.cfg.d_model, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def loop(vlm, prompt, point, fn):
    """Greedy tokens with the whole sequence read anew at each step, and a plain hook."""
    inputs = dict(prompt.inputs)
    for _ in range(NEW):
        step = tiny.plain_write(vlm.hf_model, inputs, point, fn)[:, -1].argmax(-1, keepdim=True)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], step], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(step)], 1)
    return inputs["input_ids"][:, prompt.length :]


def hf_generate(vlm, prompt):
    with torch.no_grad():
        out = vlm.hf_model.generate(**prompt.inputs, do_sample=False, **GREEDY)
    return out[:, prompt.length :]


def test_without_interventions_it_is_hugging_face(vlm, prompt, batch):
    for one in (prompt, batch, vlm.prompt("Q:Greece\nA:")):
        made = vlm.generate(one, **GREEDY)
        assert torch.equal(made.tokens, hf_generate(vlm, one))
        assert made.tokens.shape == (len(one), NEW)
        decoded = vlm.tokenizer.batch_decode(made.tokens, skip_special_tokens=True)
        assert made.text == tuple(decoded)


@pytest.mark.parametrize("point", ["blocks.0.hook_resid_post", "blocks.1.hook_attn_out"])
def test_an_intervention_in_the_prompt_acts_once(vlm, prompt, batch, point):
    vector = direction(vlm)
    for one in (prompt, batch):
        patch = Steer(point, at=Last(), vector=vector)

        def add(x, one=one):
            x = x.clone()
            x[:, one.length - 1] += vector
            return x

        made = vlm.generate(one, interventions=patch, **GREEDY).tokens
        assert torch.equal(made, loop(vlm, one, point, add))
        uncached = vlm.generate(one, interventions=patch, use_cache=False, **GREEDY).tokens
        assert torch.equal(made, uncached)
        assert not torch.equal(made, vlm.generate(one, **GREEDY).tokens)


def test_pictures_are_seen_at_every_step(vlm, prompt):
    patch = Ablate("projector.hook_out", at=Images(1))
    made = vlm.generate(prompt, interventions=patch, **GREEDY).tokens
    uncached = vlm.generate(prompt, interventions=patch, use_cache=False, **GREEDY).tokens

    def cut(x):
        return torch.stack([x[0], torch.zeros_like(x[1])])

    assert torch.equal(made, uncached)
    assert torch.equal(made, loop(vlm, prompt, "projector.hook_out", cut))


def test_steering_acts_at_each_new_token_and_not_in_the_prompt(vlm, prompt, batch):
    point, vector = "blocks.0.hook_resid_post", direction(vlm)
    for one in (prompt, batch):

        def add(x, one=one):
            x = x.clone()
            x[:, one.length :] += 2 * vector
            return x

        steer = Steer(point, at=Generated(), vector=vector, scale=2)
        made = vlm.generate(one, interventions=steer, **GREEDY).tokens
        assert torch.equal(made, loop(vlm, one, point, add))
        uncached = vlm.generate(one, interventions=steer, use_cache=False, **GREEDY).tokens
        assert torch.equal(made, uncached)
        plain = vlm.generate(one, **GREEDY).tokens
        assert torch.equal(made[:, 0], plain[:, 0])  # the first new token comes from the prompt
        assert not torch.equal(made, plain)


def test_both_together_and_in_a_context(vlm, batch):
    point, vector = "blocks.0.hook_resid_post", direction(vlm)
    first = Ablate(point, at=Find(":"))
    second = Steer(point, at=Generated(), vector=vector)
    places = [layout.find(":") if ":" in layout._text else None for layout in batch.layouts]
    if None in places:
        batch = vlm.prompt(TEXTS[:2], [tiny.noise_picture(i) for i in range(2)])
        places = places[:2]

    def change(x):
        x = x.clone()
        x[range(len(places)), places] = 0
        x[:, batch.length :] += vector
        return x

    expected = loop(vlm, batch, point, change)
    assert torch.equal(
        vlm.generate(batch, interventions=[first, second], **GREEDY).tokens, expected
    )
    assert torch.equal(vlm.generate(batch, interventions=first + second, **GREEDY).tokens, expected)
    with vlm.intervening(first), vlm.intervening(second):
        assert torch.equal(vlm.generate(batch, **GREEDY).tokens, expected)
    assert torch.equal(
        vlm.generate(batch, interventions=(i for i in (first, second)), **GREEDY).tokens, expected
    )


def test_patterns_of_generated_tokens(clip):
    prompt = clip.prompt("Q:Greece\nA:")
    heads = (0, 3)
    by_pattern = Ablate("blocks.1.attn.hook_pattern", at=Generated(), heads=heads)
    by_values = Ablate("blocks.1.attn.hook_z", at=Generated(), heads=heads)
    made = clip.generate(prompt, interventions=by_pattern, **GREEDY).tokens
    assert torch.equal(made, clip.generate(prompt, interventions=by_values, **GREEDY).tokens)


def test_logits_can_be_written_where_only_the_last_are_made(llama):
    prompt = llama.prompt("Q:Greece\nA:")
    favourite = torch.zeros(llama.cfg.d_vocab)
    favourite[77] = 100
    patch = ActivationPatch("hook_logits", at=Last(), value=favourite)
    made = llama.generate(prompt, interventions=patch, **GREEDY).tokens
    assert made[0, 0] == 77
    always = ActivationPatch("hook_logits", at=Generated(), value=favourite)
    assert llama.generate(prompt, interventions=always, **GREEDY).tokens[0, 1:].tolist() == [77] * 4


def test_rows_that_end_early(llama):
    texts = ["Q:Greece\nA:", "Q:Peru\nA:Lima\n\nQ:France\nA:"]
    prompt = llama.prompt(texts)
    plain = llama.generate(prompt, **GREEDY).tokens
    stop = int(plain[0, 1])
    made = llama.generate(prompt, max_new_tokens=NEW, eos_token_id=stop).tokens
    assert made[0, 2:].tolist() == [llama.tokenizer.pad_token_id] * (made.shape[1] - 2)


def test_refused_before_any_compute(vlm, prompt, no_forward):
    no_forward(vlm)
    steer = Steer("blocks.0.hook_resid_post", at=Generated(), vector=1.0)
    with pytest.raises(InterventionError, match="max_new_tokens of 2 or more"):
        vlm.run(prompt, interventions=steer)
    with pytest.raises(InterventionError, match="max_new_tokens of 2 or more"):
        vlm.generate(prompt, interventions=steer, max_new_tokens=1)
    with pytest.raises(PromptError, match="at least 1"):
        vlm.generate(prompt, max_new_tokens=0)
    for option in ("num_beams", "num_return_sequences"):
        with pytest.raises(InterventionError, match=option):
            vlm.generate(prompt, max_new_tokens=2, interventions=steer, **{option: 2})
    with pytest.raises(InterventionError, match="give the mean as a tensor"):
        Ablate("blocks.0.hook_resid_post", at=Generated(), by="mean")


def test_a_place_outside_the_logits_that_are_made(llama):
    """Generation makes the last position's logits only: a write to others touched nothing."""
    with pytest.raises(InterventionError, match="touched no element"):
        llama.generate(
            "Q:Greece\nA:", max_new_tokens=2, interventions=Ablate("hook_logits", at=At(0))
        )


def test_mean_ablation_in_the_prompt(clip):
    prompt = clip.prompt("Q:Greece\nA:")
    patch = Ablate("blocks.0.hook_mlp_out", at=All(), by="mean")

    def mean(x):
        x = x.clone()
        x[:, : prompt.length] = x[:, : prompt.length].mean(1, keepdim=True)
        return x

    made = clip.generate(prompt, interventions=patch, **GREEDY).tokens
    assert torch.equal(made, loop(clip, prompt, "blocks.0.hook_mlp_out", mean))


def test_prints_itself():
    tokens = torch.tensor([[1, 2]])
    assert repr(Generation(tokens, (" Paris",))) == "Generation(' Paris')"
    assert str(Generation(tokens, ("a", "b"))) == "a\nb"
    assert repr(Generation(tokens)) == "Generation([[1, 2]])"
    assert len(Generation(tokens)) == 1
