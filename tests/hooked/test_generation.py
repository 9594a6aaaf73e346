"""Generation under interventions, against loops written by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from transformers import GenerationConfig
from typecheck import unchecked

from vlm_lens import (
    Ablate,
    ActivationPatch,
    All,
    At,
    Find,
    Generated,
    HookedVLM,
    Images,
    Last,
    Steer,
)
from vlm_lens.errors import InterventionError, PromptError, VLMLensError
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


# ---------------------------------------------------------------------- settings


def test_without_a_number_it_is_the_configurations_or_twenty(llama, monkeypatch):
    assert llama.generate("Q:", eos_token_id=None).tokens.shape == (1, 20)
    config = GenerationConfig(max_new_tokens=3, eos_token_id=None)
    assert llama.generate("Q:", generation_config=config, eos_token_id=None).tokens.shape == (1, 3)
    monkeypatch.setattr(llama.hf_model.generation_config, "max_new_tokens", 4)
    assert llama.generate("Q:", eos_token_id=None).tokens.shape == (1, 4)
    assert llama.generate("Q:", max_new_tokens=np.int64(2), eos_token_id=None).tokens.shape[1] == 2


MOVING = {
    "num_return_sequences": 3, "num_beams": 2, "prompt_lookup_num_tokens": 2,
    "prefill_chunk_size": 2, "guidance_scale": 1.5, "token_healing": True,
}  # fmt: skip


@pytest.mark.parametrize("option", MOVING)
def test_every_door_of_what_moves_places_is_watched(llama, no_forward, monkeypatch, option):
    """As a keyword, in a configuration passed, and in the model's own."""
    value = MOVING[option]
    steer = Steer("blocks.0.hook_resid_post", at=Last(), vector=1.0)
    config = GenerationConfig(**{option: value}, do_sample=True)
    no_forward(llama)
    with pytest.raises(InterventionError, match=option):
        llama.generate("Q:", interventions=steer, **{option: value})
    with pytest.raises(InterventionError, match=option):
        llama.generate("Q:", interventions=steer, generation_config=config)
    with llama.intervening(steer), pytest.raises(InterventionError, match=option):
        llama.generate("Q:", **{option: value})
    with (
        llama.hooks([("blocks.0.hook_resid_post", lambda x, hook: None)]),
        pytest.raises(InterventionError, match=option),
    ):
        llama.generate("Q:", **{option: value})
    monkeypatch.setattr(llama.hf_model.generation_config, option, value)
    with pytest.raises(InterventionError, match=option):
        llama.generate("Q:", interventions=steer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_attentions": True}, "output_attentions= would be ignored"),
        ({"return_dict_in_generate": True}, "names_filter=.*scores=True"),
        ({"generation_config": GenerationConfig(output_scores=True)}, "output_scores"),
        ({"max_new_token": 3}, "Did you mean 'max_new_tokens'"),
        ({"max_length": 30}, "max_new_tokens="),
        ({"attention_mask": None}, "input_ids and attention_mask"),
        ({"position_ids": None}, "part of the prompt"),
        ({"generation_config": {"num_beams": 2}}, "transformers.GenerationConfig"),
        ({"stop_at_eos": False}, "eos_token_id"),
        ({"temprature": 0.5}, "Did you mean 'temperature'"),
        ({"do_sample": True, "temperature": -1.0}, "temperature"),
        ({"num_return_sequences": 3}, "do not support"),
        ({"num_beams": 0}, "num_beams"),
    ],
)
def test_options_that_would_be_ignored_are_refused(llama, no_forward, options, message):
    no_forward(llama)
    with pytest.raises(VLMLensError, match=message):
        llama.generate("Q:", **options)


def test_a_number_of_tokens_is_whole(llama, no_forward):
    no_forward(llama)
    with pytest.raises(PromptError, match="whole number"):
        unchecked(HookedVLM.generate)(llama, "Q:", max_new_tokens=2.5)


def test_a_model_that_asks_for_more_output_still_gives_tokens(llama, monkeypatch):
    plain = llama.generate("Q:", max_new_tokens=3).tokens
    monkeypatch.setattr(llama.hf_model.generation_config, "return_dict_in_generate", True)
    assert torch.equal(llama.generate("Q:", max_new_tokens=3).tokens, plain)


def test_sampling_is_transformers_own(llama):
    prompt = llama.prompt("Q:Greece\nA:")
    options = {"do_sample": True, "temperature": 0.7, "max_new_tokens": 4, "eos_token_id": None}
    torch.manual_seed(0)
    mine = llama.generate(prompt, **options).tokens
    torch.manual_seed(0)
    theirs = llama.hf_model.generate(**prompt.inputs, **options, pad_token_id=0)
    assert torch.equal(mine, theirs[:, prompt.length :])
    torch.manual_seed(0)
    config = GenerationConfig(**options)
    found = llama.generate(prompt, generation_config=config, eos_token_id=None).tokens
    assert torch.equal(found, mine)


def test_a_string_may_stop_it(llama):
    made = llama.generate("Q:Greece\nA:", max_new_tokens=12, eos_token_id=None)
    stop = made.text[0].strip()[2]
    cut = llama.generate("Q:Greece\nA:", max_new_tokens=12, eos_token_id=None, stop_strings=[stop])
    assert cut.tokens.shape[1] < 12
    assert stop in cut.text[0]
