"""What generation reads, against one teacher-forced run of prompt and answer."""

from __future__ import annotations

import pytest
import tiny
import torch
from families.every import FAMILIES
from reach import builder, causal
from reach.inputs import example

from vlm_lens import (
    At,
    AttentionKnockout,
    Find,
    Generated,
    HookedVLM,
    Images,
    Last,
    Steer,
    VLMLensError,
)
from vlm_lens.errors import InterventionError, PointError, PositionError, PromptError

NAMES = [
    "hook_embed", "blocks.*.hook_resid_post", "blocks.*.attn.hook_z", "blocks.*.attn.hook_q",
    "blocks.*.attn.hook_pattern", "hook_logits",
]  # fmt: skip
NEW = 5
GREEDY = {"max_new_tokens": NEW, "eos_token_id": None}
TEXTS = ["Q:<image>b\nA:", "Q:<image>\nA:red\n\nQ:<image>\nA:"]


def teacher_forced(vlm, prompt, tokens, names, **options):
    """Everything that one run of prompt and answer reads, but for the answer's last token."""
    inputs = dict(prompt.inputs)
    answer = tokens[:, :-1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], 1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(answer)], 1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.zeros_like(answer)], 1)
    if "cross_attention_mask" in inputs:
        last = inputs["cross_attention_mask"][:, -1:].expand(-1, answer.shape[1], -1, -1)
        inputs["cross_attention_mask"] = torch.cat([inputs["cross_attention_mask"], last], 1)
    return vlm.run_with_cache(inputs, names_filter=names, **options)[1]


def check(vlm, prompt, found, forced, prompt_places, **tolerances):
    """Each row of what generation read is that of the teacher-forced run."""
    rows = [*prompt_places, *range(prompt.length, prompt.length + NEW - 1)]
    assert set(found) == set(forced)
    for name, value in found.items():
        expected = forced[name]
        query = "query" in vlm.points()[name].axes
        expected = expected[:, :, rows] if query else expected[:, rows]
        for row, layout in enumerate(prompt.layouts):
            start = layout.start if query and not vlm.points()[name].pictures_only else 0
            torch.testing.assert_close(
                value[row][..., start:], expected[row][..., start:], rtol=1e-4, atol=2e-5
            )


@pytest.fixture(scope="module", params=["clip-llama", "qwen2_vl", "gemma3", "mllama", "idefics2"])
def vlm(request, tmp_path_factory):
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    save = FAMILIES[name].save_to if name in FAMILIES else lambda f: tiny.save(name, f)
    save(folder)
    return HookedVLM.from_pretrained(folder)


def prompts(vlm):
    pictures = [tiny.noise_picture(i, (24, 16)) for i in range(3)]
    yield vlm.prompt(TEXTS[0], pictures[:1])
    if vlm.family.name != "mllama":
        yield vlm.prompt(TEXTS, [pictures[:1], pictures[1:]])


@pytest.mark.parametrize("cached", [True, False])
def test_rows_are_those_of_one_teacher_forced_run(vlm, cached):
    names = [*NAMES, "blocks.*.attn.hook_attn_scores"]  # also of keys that come later
    for prompt in prompts(vlm):
        made = vlm.generate(prompt, names_filter=names, scores=True, use_cache=cached, **GREEDY)
        plain = vlm.generate(prompt, **GREEDY)
        assert torch.equal(made.tokens, plain.tokens) and plain.cache is plain.scores is None
        forced = teacher_forced(vlm, prompt, made.tokens, names)
        check(vlm, prompt, made.cache, forced, [prompt.length - 1])
        assert torch.equal(made.scores, made.cache["hook_logits"])
        assert torch.equal(made.scores.argmax(-1), made.tokens)


def test_the_same_under_interventions(vlm):
    prompt = next(iter(prompts(vlm)))
    vector = torch.randn(vlm.cfg.d_model, generator=torch.Generator().manual_seed(0))
    steer = Steer("blocks.0.hook_resid_post", Last() + Generated(), vector)
    edit = steer + AttentionKnockout(Last() + Generated(), keys=[1, 2])
    made = vlm.generate(prompt, names_filter=NAMES, interventions=edit, **GREEDY)
    places = Last().resolve(prompt.layout)[0][1]
    later = list(range(places, prompt.length + NEW - 1))
    same = Steer("blocks.0.hook_resid_post", later, vector)
    same = same + AttentionKnockout(later, keys=[1, 2])
    forced = teacher_forced(vlm, prompt, made.tokens, NAMES, interventions=same)
    check(vlm, prompt, made.cache, forced, [prompt.length - 1])


def test_places_of_the_prompt_come_first(load):
    vlm = load("clip-llama")
    prompt = vlm.prompt(TEXTS[0], [tiny.noise_picture()])
    at = Images() + Generated()
    made = vlm.generate(prompt, names_filter=NAMES[:-1], positions=at, **GREEDY)
    forced = teacher_forced(vlm, prompt, made.tokens, NAMES[:-1])
    check(vlm, prompt, made.cache, forced, list(prompt.layout.image[0].positions))
    only = vlm.generate(prompt, names_filter=NAMES[1], positions=Generated(), **GREEDY)
    check(vlm, prompt, only.cache, teacher_forced(vlm, prompt, only.tokens, NAMES[1]), [])
    inside = vlm.generate(prompt, names_filter=NAMES[1], positions=Find("A"), **GREEDY).cache
    _, expected = vlm.run_with_cache(prompt, names_filter=NAMES[1], positions=Find("A"))
    for name, value in inside.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)
    assert "blocks.0.hook_resid_post" in inside and inside.at == Find("A")


def test_sampled_tokens_keep_the_logits_before_temperature(load):
    vlm = load("llama")
    torch.manual_seed(0)
    made = vlm.generate("Q:", scores=True, do_sample=True, temperature=0.3, **GREEDY)
    forced = teacher_forced(vlm, vlm.prompt("Q:"), made.tokens, "hook_logits")["hook_logits"]
    torch.testing.assert_close(made.scores, forced[:, -NEW:], rtol=1e-4, atol=1e-5)


def test_what_is_refused(load, no_forward):
    vlm = load("clip-llama")
    prompt = vlm.prompt(TEXTS[0], [tiny.noise_picture()])
    plain = vlm.generate(prompt, **GREEDY).tokens
    with pytest.raises(PromptError, match="ended with its first new token"):
        vlm.generate(prompt, names_filter=NAMES[1], positions=Generated(), max_new_tokens=3,
                     eos_token_id=int(plain[0, 0]))  # fmt: skip
    with pytest.raises(PointError, match="hook_logits is not computed at position"):
        vlm.generate(prompt, names_filter="hook_logits", positions=Images(), **GREEDY)
    batch = vlm.prompt(["Q:", "<image>Q:"], [[], [tiny.noise_picture()]])
    no_forward(vlm)
    for options, error, says in (
        ({"positions": Last()}, PromptError, "names_filter="),
        ({"names_filter": "vision.hook_embed"}, PositionError, "vision"),
        ({"names_filter": "blocks.7.hook_resid_post"}, VLMLensError, "blocks.7"),
        ({"names_filter": NAMES[1], "positions": Generated(), "max_new_tokens": 1}, PromptError,
         "2 or more"),
        ({"names_filter": NAMES[1], "num_beams": 2}, InterventionError, "num_beams"),
        ({"scores": True, "num_return_sequences": 2}, InterventionError, "num_return_sequences"),
        ({"names_filter": NAMES[1], "prefill_chunk_size": 2}, InterventionError, "pieces"),
    ):  # fmt: skip
        with pytest.raises(error, match=says):
            vlm.generate(prompt, **options)
    with pytest.raises(VLMLensError, match="rows of"):
        vlm.generate(batch, names_filter=NAMES[1], positions=~Last(), **GREEDY)


def _tokens(model_type):
    """A tiny language model of a type, and a prompt of it."""
    vlm = HookedVLM(causal.build(model_type))
    return vlm, vlm.as_prompt(dict(causal.INPUTS))


@pytest.mark.parametrize("model_type", ["mamba2", "rwkv"])
def test_positions_where_a_model_keeps_states_and_no_keys(model_type):
    """A place of the prompt is written once, a new token at its step, as without any cache."""
    vlm, prompt = _tokens(model_type)
    block = vlm.hf_model.get_submodule(vlm.architecture.decoder.stack.path)[0]
    vector = torch.randn(vlm.cfg.d_model, generator=torch.Generator().manual_seed(0))
    for at, places in ((At(0), slice(0, 1)), (Generated(), slice(prompt.length, None))):
        made = vlm.generate(
            prompt, names_filter="blocks.1.hook_resid_post", scores=True,
            interventions=Steer("blocks.0.hook_resid_post", at, vector), **GREEDY,
        )  # fmt: skip

        def add(x, places=places):
            return x.index_add(1, torch.arange(x.shape[1])[places], vector.expand(
                1, len(range(x.shape[1])[places]), -1))  # fmt: skip

        whole = torch.cat([prompt.inputs["input_ids"], made.tokens[:, :-1]], 1)
        with tiny.plain_hook(block, "output", add), torch.no_grad():
            logits = vlm.hf_model(input_ids=whole, use_cache=False).logits
        torch.testing.assert_close(made.scores, logits[:, -NEW:], rtol=1e-4, atol=1e-5)
        assert made.cache["blocks.1.hook_resid_post"].shape[1] == NEW


@pytest.mark.parametrize("model_type", ["instructblip", "instructblipvideo"])
def test_a_model_that_generates_with_its_language_model_alone(model_type):
    """Its own forward, from which positions were counted, is not called then."""
    model = builder.build(model_type)
    vlm = HookedVLM(model)
    prompt, name = vlm.as_prompt(example(model)), "blocks.1.hook_resid_post"
    vector = 3 * torch.randn(vlm.cfg.d_model, generator=torch.Generator().manual_seed(0))
    later = list(range(prompt.length, prompt.length + NEW - 1))
    for at, places in ((At(0), [0]), (Last() + Generated(), [prompt.length - 1, *later])):
        edit = Steer("blocks.0.hook_resid_post", at, vector)
        made = vlm.generate(prompt, names_filter=name, interventions=edit, **GREEDY)
        same = Steer("blocks.0.hook_resid_post", places, vector)
        forced = teacher_forced(vlm, prompt, made.tokens, name, interventions=same)
        check(vlm, prompt, made.cache, forced, [prompt.length - 1])


@pytest.mark.parametrize("model_type", ["inkling_text", "modernbert-decoder"])
def test_patterns_that_hang_on_more_than_queries_and_keys(model_type):
    """A bias of each query beside them; an eager attention that wants a mask for one query too."""
    vlm, prompt = _tokens(model_type)
    name = "blocks.1.attn.hook_pattern"
    eager = tiny.eager_copy(vlm.hf_model)
    for cached in (True, False):
        made = vlm.generate(prompt, names_filter=name, use_cache=cached, **GREEDY)
        whole = torch.cat([prompt.inputs["input_ids"], made.tokens[:, :-1]], 1)
        with torch.no_grad():
            expected = eager(input_ids=whole, output_attentions=True, use_cache=False).attentions[1]
        torch.testing.assert_close(made.cache[name], expected[:, :, -NEW:], rtol=1e-4, atol=1e-5)
    edit = AttentionKnockout(Last() + Generated(), keys=[1, 2])
    tokens = [vlm.generate(prompt, interventions=edit, use_cache=c, scores=True, **GREEDY).scores
              for c in (True, False)]  # fmt: skip
    torch.testing.assert_close(*tokens, rtol=1e-4, atol=1e-5)
