"""Runs of many threads, tasks and functions on one model, each its own."""

from __future__ import annotations

import asyncio
import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch

from vlm_lens import (
    Ablate,
    All,
    AttentionKnockout,
    Generated,
    HookedVLM,
    Images,
    Last,
    Mean,
    Steer,
)
from vlm_lens.errors import InterventionError

P = "blocks.0.hook_resid_post"
TEXTS = ["Q:Greece\nA:", "Q:Peru\nA:Lima", "Q:", "What is the colour of the fruit?"]


def edits(width: int) -> list:
    return [Steer(P, Last(), torch.full((width,), float(n))) for n in range(3)]


def test_eight_threads_get_their_own_results(load):
    vlm = load("clip-llama")
    prompts = [vlm.prompt(f"<image>{t}", [tiny.noise_picture(i)]) for i, t in enumerate(TEXTS)]
    changes = edits(vlm.cfg.d_model)

    def call(number: int):
        prompt, edit = prompts[number % 4], changes[number // 4 % 3]
        kind = number // 12 % 4
        if kind == 0:
            return vlm.run(prompt, interventions=edit)
        if kind == 1:
            with vlm.intervening(edit):
                logits, cache = vlm.run_with_cache(prompt, names_filter=[P, "projector.hook_out"])
            return torch.cat([logits.flatten(), *(v.flatten() for v in cache.values())])
        if kind == 2:
            return vlm.generate(prompt, max_new_tokens=3, interventions=edit).tokens
        swept = vlm.sweep(prompt, [edit, Ablate(P, Last())], measure="logits", progress=False)
        return swept.stack("logits")

    expected = [call(n) for n in range(48)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(call, [n % 48 for n in range(400)]))
    assert sum(torch.equal(x, expected[n % 48]) for n, x in enumerate(found)) == 400


def test_attention_knockouts_means_and_lenses_of_eight_threads_are_their_own(load):
    vlm = load("clip-llama")
    prompts = [vlm.prompt(f"<image>{t}", [tiny.noise_picture(i)]) for i, t in enumerate(TEXTS)]
    lasting = AttentionKnockout(Last() + Generated(), Images())
    cut = AttentionKnockout(Last(), Images())

    def call(number: int):
        prompt, kind = prompts[number % 4], number // 4
        if kind == 0:
            return torch.from_numpy(vlm.attention(prompt, at=Last()).values.to_numpy())
        if kind == 1:
            return vlm.generate(prompt, max_new_tokens=3, interventions=lasting).tokens
        if kind == 2:
            windows = cut.each_window(1)
            return vlm.sweep(prompt, windows, measure="logits", progress=False).stack("logits")
        if kind == 3:
            return Mean.of(vlm, [prompt], P).values[P].data
        return vlm.run_with_cache(prompt, names_filter=P, grad=True)[0].detach()

    expected = [call(n) for n in range(20)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(call, [n % 20 for n in range(120)]))
    assert sum(torch.equal(x, expected[n % 20]) for n, x in enumerate(found)) == 120


def test_texts_are_read_by_many_threads(load):
    vlm = load("llama")
    expected = [vlm.run(t) for t in TEXTS]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: vlm.run(TEXTS[n % 4]), range(80)))
    assert all(torch.equal(x, expected[n % 4]) for n, x in enumerate(found))


def test_what_a_thread_opens_is_its_own(load):
    vlm = load("llama")
    plain = vlm.run(TEXTS[0])
    with vlm.intervening(Ablate(P, All())), ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(vlm.run, TEXTS[0]).result(), plain)
        assert not torch.equal(vlm.run(TEXTS[0]), plain)


def test_what_a_task_opens_is_its_own(load):
    vlm = load("llama")
    plain = vlm.run(TEXTS[0])
    steered = [vlm.run(TEXTS[0], interventions=edit) for edit in edits(vlm.cfg.d_model)]

    async def task(edit):
        with vlm.intervening(edit):
            await asyncio.sleep(0)
            logits = vlm.run(TEXTS[0])
            await asyncio.sleep(0)
        return logits, vlm.run(TEXTS[0])

    async def together():
        return await asyncio.gather(*map(task, edits(vlm.cfg.d_model)))

    for (inside, after), expected in zip(asyncio.run(together()), steered, strict=True):
        assert torch.equal(inside, expected)
        assert torch.equal(after, plain)


def test_generators_close_what_they_opened(load):
    vlm = load("llama")
    plain = vlm.run(TEXTS[0])
    zero, steer = Ablate(P, All()), edits(vlm.cfg.d_model)[1]

    def opening(edit):
        with vlm.intervening(edit):
            yield

    first, second = opening(zero), opening(steer)
    next(first), next(second)
    first.close()  # not in the order of opening
    assert torch.equal(vlm.run(TEXTS[0]), vlm.run(TEXTS[0], interventions=()))
    only_steer = vlm.run(TEXTS[0])
    second.close()
    assert torch.equal(only_steer, vlm.run(TEXTS[0], interventions=steer))
    assert torch.equal(vlm.run(TEXTS[0]), plain)


def test_a_function_may_run_the_model(load):
    vlm = load("llama")
    inputs = vlm.prompt(TEXTS[1]).inputs
    inner = []

    def look(x, hook):
        inner.append(vlm.run_with_cache(TEXTS[1], names_filter=P))
        inner.append(vlm.hf_model(**inputs).logits)

    names = ["blocks.0.attn.hook_pattern", "blocks.1.hook_mlp_out"]
    logits, cache = vlm.run_with_cache(TEXTS[0])
    with vlm.hooks([]):
        seen = vlm.run_with_hooks(TEXTS[0], fwd_hooks=[(names, look)])
    assert torch.equal(seen, logits)
    other, other_cache = vlm.run_with_cache(TEXTS[1], names_filter=P)
    for (mine, read), plain in zip(inner[::2], inner[1::2], strict=True):
        assert torch.equal(mine, other)
        assert torch.equal(plain, other)
        assert torch.equal(read[P], other_cache[P])
    assert len(inner) == 4
    reading = vlm.hooks([("blocks.0.hook_mlp_out", lambda x, hook: x)])
    with reading:  # a reader of this run sees this run only
        again = vlm.run_with_cache(TEXTS[0])[1]
    assert all(torch.equal(again[n], cache[n]) for n in cache)


def test_a_function_that_would_be_called_without_end_is_refused(load):
    vlm = load("llama")
    plain = vlm.run(TEXTS[0])
    with (
        pytest.raises(InterventionError, match="called without end"),
        vlm.hooks([(P, lambda x, hook: vlm.run(TEXTS[0]))]),
    ):
        vlm.run(TEXTS[0])
    assert torch.equal(vlm.run(TEXTS[0]), plain)
    before = tiny.hook_state(vlm.hf_model)
    other = vlm.prompt("Q:").inputs
    with (
        pytest.raises(InterventionError, match="runs the model while it generates"),
        vlm.hooks([(P, lambda x, hook: vlm.hf_model(**other))]),
    ):
        vlm.generate(TEXTS[0], max_new_tokens=2)
    assert tiny.hook_state(vlm.hf_model) == before


def test_another_model_may_be_run_while_one_generates(load):
    vlm = load("llama")
    twin = HookedVLM(copy.deepcopy(vlm.hf_model), vlm.processor)
    plain = vlm.generate(TEXTS[0], max_new_tokens=3, eos_token_id=None)
    read = []
    with vlm.hooks([(P, lambda x, hook: read.append(twin.run(TEXTS[1])))]):
        found = vlm.generate(TEXTS[0], max_new_tokens=3, eos_token_id=None)
    assert torch.equal(found.tokens, plain.tokens)
    assert len(read) == 3
    assert all(torch.equal(one, twin.run(TEXTS[1])) for one in read)
