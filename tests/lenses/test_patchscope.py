"""Patchscope against a hook written by hand and transformers' own generate."""

from __future__ import annotations

import pytest
import tiny
import torch

from vlm_lens import Images, Last
from vlm_lens.errors import PositionError
from vlm_lens.lenses import LensError, Patchscope

TARGET = "red->red; Lima->Lima; ?"
N = 3


@pytest.fixture
def asked(clip, picture):
    return clip.prompt("Q:<image>\nA:", [picture])


@torch.no_grad()
def by_hand(vlm, state, block):
    """Tokens generated after the target with a state written at its last `?`, and first logits."""
    prompt = vlm.prompt(TARGET)
    position = max(i for i, s in enumerate(prompt.layout.strings) if "?" in s)
    module, _ = tiny.where(vlm.hf_model, f"blocks.{block}.hook_resid_post")

    def write(module, args, out):
        hidden = tiny.first(out)
        if hidden.shape[1] == 1:  # a new token
            return None
        hidden = hidden.clone()
        hidden[0, position] = state
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    hook = module.register_forward_hook(write)
    try:
        logits = vlm.hf_model(**prompt.inputs).logits[0, -1]
        tokens = vlm.hf_model.generate(**prompt.inputs, max_new_tokens=N, do_sample=False)
    finally:
        hook.remove()
    text = vlm.tokenizer.decode(tokens[0, prompt.length :], skip_special_tokens=True)
    return text, logits.softmax(-1)


@pytest.mark.parametrize("layer", [None, 1, {0: 1, 1: 0}])
def test_equals_a_hook_and_generate(clip, asked, layer):
    lens = Patchscope(at=Images(), tokens=(9,), target=TARGET, layer=layer, max_new_tokens=N)
    seen = lens.run(clip, asked)
    row = seen.rows[0]
    points = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    read = tiny.plain_read(clip.hf_model, asked.inputs, points)
    texts = set()
    for source, point in enumerate(points):
        block = source if layer is None else layer if layer == 1 else layer[source]
        for i, position in enumerate(row.positions[::3]):
            text, probs = by_hand(clip, read[point][0, position], block)
            told, prob = seen.top(source, 3 * i)[0]
            assert told == text
            assert prob == pytest.approx(float(probs.max()), rel=1e-4)
            mine = float(row.token_probs[source, 3 * i, 0])
            assert mine == pytest.approx(float(probs[9]), rel=1e-4)
            texts.add(text)
    assert len(texts) > 1
    assert row.entropy is not None and "target prompt" in seen.plot().layout.title.text


def test_a_state_can_be_brought_to_the_length_of_what_it_replaces(clip, asked):
    lens = Patchscope(at=Last(), target=TARGET, layer=0, max_new_tokens=N, match_norm=True)
    seen = lens.run(clip, asked)
    target = clip.prompt(TARGET)
    point = "blocks.0.hook_resid_post"
    there = tiny.plain_read(clip.hf_model, target.inputs, [point])[point][0]
    position = max(i for i, s in enumerate(target.layout.strings) if "?" in s)
    state = tiny.plain_read(clip.hf_model, asked.inputs, [point])[point][0, -1]
    text, probs = by_hand(clip, state * there[position].norm() / state.norm(), 0)
    assert seen.top(0)[0] == (text, pytest.approx(float(probs.max()), rel=1e-4))


def test_what_cannot_be_is_refused_before_any_run(clip, asked, no_forward):
    no_forward(clip)
    with pytest.raises(PositionError, match="does not occur"):
        Patchscope(target="no place").run(clip, asked)
    with pytest.raises(LensError, match="blocks 0 to 1, not 7"):
        Patchscope(layer=7).run(clip, asked)
    with pytest.raises(LensError, match=r"of no block where states of blocks\.1"):
        Patchscope(layer={0: 0}).run(clip, asked)
    with pytest.raises(LensError, match="at least 1"):
        Patchscope(max_new_tokens=0)
