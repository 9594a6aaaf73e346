"""Tensors of one's own: checked, in the model's dtype, and right wherever their padding stands."""

from __future__ import annotations

import pytest
import tiny
import torch

from vlm_lens import Ablate, ActivationPatch, At, Find, HookedVLM, Last, Patches, Steer
from vlm_lens.errors import PositionError, PromptError

TEXTS = ["Q:<image>\nA:red\n\nQ:<image>\nA:", "Q:Greece\nA:", "What is the colour of <image>?"]
POINT = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def padded(load):
    """A model, a processor's output padded on the right, and each of its rows alone."""
    vlm = load("clip-llama")
    pictures = [[tiny.noise_picture(0), tiny.noise_picture(1)], [], [tiny.noise_picture(2)]]
    flat = [p for row in pictures for p in row]
    given = vlm.processor(
        text=TEXTS, images=flat, return_tensors="pt", padding=True, padding_side="right"
    )
    alone = [vlm.prompt(text, mine) for text, mine in zip(TEXTS, pictures, strict=True)]
    assert not given["attention_mask"][1, -1]
    return vlm, dict(given), alone


def hf_tokens(vlm, prompt, edit=None):
    """Greedy tokens of plain transformers, with a plain hook that adds to one position."""
    inputs = dict(prompt.inputs)
    made = []
    for _ in range(4):
        if edit is None:
            logits = tiny.plain_logits(vlm.hf_model, inputs)
        else:
            logits = tiny.plain_write(vlm.hf_model, inputs, POINT, edit)
        made.append(logits[:, -1].argmax(-1, keepdim=True))
        inputs["input_ids"] = torch.cat([inputs["input_ids"], made[-1]], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return torch.cat(made, 1)


def test_generate_goes_on_from_the_last_real_position(padded):
    vlm, given, alone = padded
    made = vlm.generate(given, max_new_tokens=4, eos_token_id=None).tokens
    assert torch.equal(made, torch.cat([hf_tokens(vlm, one) for one in alone]))


@pytest.mark.parametrize("at", [Last(), Find(":", 0), At(2), At((1, 3))], ids=repr)
def test_places_are_those_of_the_tensors_given(padded, at):
    vlm, given, alone = padded
    if at == Find(":", 0):
        given, alone = {k: v[:2] for k, v in given.items() if k != "pixel_values"}, alone[:2]
        given["pixel_values"] = alone[0].inputs["pixel_values"]
    vector = 8 * torch.randn(vlm.cfg.d_model, generator=torch.Generator().manual_seed(1))
    steer = Steer(POINT, at=at, vector=vector)
    made = vlm.generate(given, max_new_tokens=4, eos_token_id=None, interventions=steer).tokens
    for row, one in enumerate(alone):
        places = [p for _, p in at.resolve(one.layout)]

        def add(x, places=places):
            x = x.clone()
            x[:, places] += vector
            return x

        assert torch.equal(made[row], hf_tokens(vlm, one, add)[0])


def test_prompts_of_their_own_stay_so_when_padding_moves(padded):
    vlm, given, alone = padded
    together = vlm.prompts.left_padded(vlm.as_prompt(given).of_rows_alone())
    for layout, one in zip(together.layouts, alone, strict=True):
        for n in (0, 2, -1):
            assert At(n).resolve(layout) == [(layout.row, layout.start + n % one.length)]


def test_padding_is_no_place(padded):
    vlm, given, _ = padded
    steer = Steer(POINT, at=At(-1), vector=1.0)
    with pytest.raises(PositionError, match=r"padding: this prompt stands at 0 to \d+ of its row"):
        vlm.generate(given, interventions=steer)


def test_every_measure_of_a_sweep_reads_the_last_real_position(padded):
    vlm, given, alone = padded
    variants = [Ablate(POINT, at=Last()), Steer(POINT, at=At(1), vector=3.0)]
    for measure in ("top1", "logits", "generate", [5, 9]):
        swept = vlm.sweep(given, variants, measure=measure, progress=False)
        for row, one in enumerate(alone):
            single = vlm.sweep(one, variants, measure=measure, progress=False)
            mine = [r for r in swept.records if r["row"] == row]
            for found, expected in zip(mine, single.records, strict=True):
                for name, value in expected.items():
                    if isinstance(value, torch.Tensor | float):
                        torch.testing.assert_close(
                            torch.as_tensor(found[name]), torch.as_tensor(value),
                            atol=1e-4, rtol=1e-4,
                        )  # fmt: skip
                    elif not name.startswith(("at", "position")):
                        assert found[name] == value, (measure, name)


def test_pictures_keep_their_pixels_when_padding_moves(padded):
    vlm, _, _ = padded
    picture = tiny.noise_picture(4, (48, 64))
    texts = ["<image>A:", "Q:<image> What is the colour?"]
    prompt = vlm.prompt(texts, [picture, picture])
    right = vlm.processor(
        text=texts, images=[picture] * 2, return_tensors="pt", padding=True, padding_side="right"
    )
    moved = vlm.prompts.left_padded(vlm.as_prompt(dict(right)))
    assert torch.equal(moved.inputs["input_ids"], prompt.inputs["input_ids"])
    assert torch.equal(moved.inputs["attention_mask"], prompt.inputs["attention_mask"])
    assert Patches(0).resolve(moved.layouts[0]) == Patches(0).resolve(prompt.layouts[0])
    assert vlm.prompts.left_padded(prompt) is prompt


def test_values_of_a_cache_fit_generation_from_the_same_tensors(padded):
    vlm, given, _ = padded
    _, cache = vlm.run_with_cache(given, names_filter=POINT)
    patch = ActivationPatch(POINT, at=Last(), value=cache)
    plain = vlm.generate(given, max_new_tokens=3, eos_token_id=None).tokens
    made = vlm.generate(given, max_new_tokens=3, eos_token_id=None, interventions=patch).tokens
    assert torch.equal(made, plain)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": torch.ones(1, 2)}, "integers"),
        ({"input_ids": "Q"}, "return_tensors='pt'"),
        ({"input_ids": [[1, 2], [3]]}, "return_tensors='pt'"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, r"attention_mask must be \[1, 2\]"),
        ({"input_ids": [[1, 2]], "attention_mask": [[0, 0]]}, "all zeros"),
        ({"input_ids": [[-1, 2]]}, "vocabulary"),
        ({"input_ids": []}, r"\[batch, pos\]"),
    ],
)
def test_what_is_no_prompt_is_said(llama, no_forward, inputs, message):
    no_forward(llama)
    with pytest.raises(PromptError, match=message):
        llama.run(inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_floating_tensors_come_in_the_models_dtype(dtype):
    vlm = HookedVLM(tiny.build("siglip-mistral").to(dtype), tiny.reader("siglip-mistral"))
    prompt = vlm.prompt("<image>A:", tiny.noise_picture())
    assert prompt.inputs["pixel_values"].dtype == dtype
    assert prompt.inputs["input_ids"].dtype == torch.long
