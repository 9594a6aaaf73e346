"""toy-induction says what its formulas say, and its residual stream holds what its card tells."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from induction_case import (
    COPY,
    HEADS,
    HERE,
    NAMES,
    RGB,
    asked,
    chirps,
    drawn,
    expected,
    full,
    model,
    token_list,
    top,
)
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_lens import HookedVLM, LogitLens, Prompt, zoo
from vlm_lens.zoo.induction import ANSWER, INDUCTION, PREVIOUS, QUESTION, SLOTS, read_slot


@pytest.fixture
def vlm() -> HookedVLM:
    return model()


@pytest.fixture
def tokens() -> list[str]:
    return token_list()


@pytest.fixture
def prompt() -> Prompt:
    return asked(0)


# ---------------------------------------------------------------------------- what it says


def test_the_shipped_folder_is_what_the_formulas_give(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from vlm_lens.zoo.induction.build import write

    write(tmp_path)
    shipped = zoo.path("toy-induction")
    made, kept = (load_file(f / "model.safetensors") for f in (tmp_path, shipped))
    assert made.keys() == kept.keys()
    for name in made:  # cosines may differ by a rounding between machines
        torch.testing.assert_close(made[name], kept[name], rtol=1e-6, atol=1e-7)
    for name in ("config.json", "tokenizer.json", "processor_config.json"):
        assert (tmp_path / name).read_text() == (shipped / name).read_text(), name
    assert sum(p.stat().st_size for p in shipped.iterdir()) < 10_000_000


def test_codes_are_far_apart(tokens) -> None:
    products = (chirps(tokens) @ chirps(tokens).conj().T).real
    np.testing.assert_allclose(np.diag(products), 1, atol=1e-12)
    apart = products - np.eye(len(tokens))
    assert abs(apart).max() <= 23**-0.5 + 1e-12
    for family in (["<image>", *NAMES], list(RGB)):
        ids = [tokens.index(t) for t in family]
        assert abs(apart[np.ix_(ids, ids)]).max() < 1e-12


def test_plain_transformers_reads_every_cell_and_color() -> None:
    folder = zoo.path("toy-induction")
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    for shift in range(9):
        image = drawn(full(shift), side=32 if shift == 8 else 224)
        texts = [f"Q:<image>{name}\nA:" for name in NAMES]
        inputs = processor(text=texts, images=[[image]] * 16, return_tensors="pt")
        with torch.no_grad():
            said = model(**inputs).logits[:, -1].argmax(-1)
        assert processor.tokenizer.convert_ids_to_tokens(said) == list(full(shift).values())


def test_logits_at_every_position_are_the_formula(vlm, tokens, prompt) -> None:
    logits = vlm.run(prompt)[0].numpy()
    words: list[str | None] = [None] * prompt.length
    for cell, position in zip(NAMES, prompt.layout.image[0].positions, strict=True):
        words[position] = full(0)[cell]
    words[-1] = HERE
    for position, word in enumerate(words):
        np.testing.assert_allclose(logits[position], expected(tokens, word), atol=1e-4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (COPY, "red"),
        ("Q:b3\nA:red\n\nQ: b3\nA:", "red"),
        ("Q:b3\nA: red\n\nQ:c1\nA:", "</s>"),
        ("x y z q x", " y"),
        ("x y z q", "</s>"),
        ("Q:Peru\nA:Lima\n\nQ:Cuba\nA:Havana\n\nQ:Peru\nA:", "L"),
    ],
)
def test_text(vlm, tokens, text: str, said: str) -> None:
    logits = vlm.run(text)
    assert top(vlm, logits) == [said]
    wanted = expected(tokens, None if said == "</s>" else said)
    np.testing.assert_allclose(logits[0, -1], wanted, atol=1e-4)


def test_spelled_words_and_the_end(vlm) -> None:
    text = "Q:Peru\nA:Lima\n\nQ:Cuba\nA:Havana\n\nQ:Peru\nA:"
    assert vlm.generate(text, max_new_tokens=4).text == ("Lima",)
    prompt = vlm.prompt("Q:<image>d4\nA:", images=[drawn({"d4": "cyan"})])
    assert vlm.generate(prompt, max_new_tokens=5).text == ("cyan",)


def test_an_unnamed_picture_is_asked_for_what_is_not_gray(vlm) -> None:
    batch = vlm.prompt(
        ["Q:<image>\nA:", "Q:<image>\nA:", "Q:<image>a1\nA:", COPY],
        images=[[drawn({"c2": "green"})], [drawn({})], [drawn({"c2": "green"})], []],
    )
    assert top(vlm, vlm.run(batch)) == ["green", "</s>", "gray", "red"]
    two = vlm.prompt("Q:<image>\nA:", images=[drawn({"a2": "red", "d3": "blue"})])
    shares = vlm.run(two)[0, -1].softmax(-1)
    for word in ("red", "blue"):
        assert shares[vlm.to_single_token(word)] == pytest.approx(0.5, abs=1e-3)


def test_half_precision_says_the_same(prompt) -> None:
    half = HookedVLM.from_pretrained("toy-induction", dtype=torch.bfloat16)
    assert top(half, half.run(half.prompt(prompt.texts[0], images=prompt.images[0]))) == [HERE]


# ---------------------------------------------------------------------------- what is where


def slot_words(vlm, residual: Tensor, slot: str) -> list[list[str]]:
    return [sorted(word for word, _ in held) for held in read_slot(vlm, residual, slot)]


def test_slots_after_each_block_on_a_picture(vlm, prompt) -> None:
    names = ["hook_merged", "blocks.*.hook_resid_post"]
    _, cache = vlm.run_with_cache(prompt, names_filter=names)
    patches = list(prompt.layout.image[0].positions)
    for point in ["hook_merged", *(f"blocks.{i}.hook_resid_post" for i in range(3))]:
        residual = cache[point][0]
        here = residual[patches]
        colors = [[full(0)[name]] for name in NAMES]
        assert slot_words(vlm, here, "TOKEN") == slot_words(vlm, here, "OUT") == colors
        assert slot_words(vlm, here, "SELF") == [["<image>"]] * 16
        keys = [sorted([n] if full(0)[n] == "gray" else [n, "<image>"]) for n in NAMES]
        assert slot_words(vlm, here, "KEY") == keys
        assert slot_words(vlm, here, "NAME") == slot_words(vlm, here, "PREV") == [[]] * 16
    last = {
        "hook_merged": [[":"], [":"], [], [], [], []],
        "blocks.0.hook_resid_post": [[":"], [":"], ["b3"], [], [], []],
        "blocks.1.hook_resid_post": [[":"], [":"], ["b3"], [], ["A"], []],
        "blocks.2.hook_resid_post": [[":"], [":"], ["b3"], [], ["A"], [HERE]],
    }
    for point, held in last.items():
        residual = cache[point][0, -1]
        assert [slot_words(vlm, residual, slot)[0] for slot in SLOTS] == held, point


def test_norms_change_nothing(vlm, prompt) -> None:
    names = ["blocks.*.hook_resid_pre", "blocks.*.ln1.hook_normalized", "blocks.2.hook_resid_post",
             "ln_final.hook_normalized", "vision.blocks.0.*"]  # fmt: skip
    _, cache = vlm.run_with_cache(prompt, names_filter=names)
    pairs = [(f"blocks.{i}.hook_resid_pre", f"blocks.{i}.ln1.hook_normalized") for i in range(3)]
    pairs += [("blocks.2.hook_resid_post", "ln_final.hook_normalized")]
    pairs += [("vision.blocks.0.hook_resid_pre", "vision.blocks.0.ln1.hook_normalized")]
    pairs += [("vision.blocks.0.hook_resid_mid", "vision.blocks.0.ln2.hook_normalized")]
    for before, after in pairs:
        torch.testing.assert_close(cache[after], cache[before], rtol=1e-6, atol=1e-6)


def test_slots_of_an_example_in_text(vlm) -> None:
    prompt = vlm.prompt(COPY)
    _, cache = vlm.run_with_cache(prompt, names_filter="blocks.*.hook_resid_post")
    red = prompt.layout.find("red")
    held = [slot_words(vlm, cache["resid_post", i][0, red], "KEY")[0] for i in range(3)]
    assert held == [[], ["b3"], ["b3"]]
    assert slot_words(vlm, cache["resid_post", 1][0, red], "PREV") == [[":"]]


def test_neurons_of_the_tower_are_steps_of_channels(vlm, prompt) -> None:
    _, cache = vlm.run_with_cache(prompt, names_filter=["vision.blocks.0.mlp.hook_post"])
    neurons = cache["vision.blocks.0.mlp.hook_post"][0, 1:]  # after the class token
    steps = (neurons[:, 0::2] - neurons[:, 1::2]) / 20
    for name, found in zip(NAMES, steps, strict=True):
        rgb = RGB[full(0)[name]]
        wanted = [float(v) for c in rgb for v in ((c == 255), (c == 0))]
        torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-4, rtol=0)


def test_lens(vlm, prompt) -> None:
    lens = LogitLens(embedding=True).run(vlm, prompt)
    patches = dict(zip(prompt.layout.image[0].positions, full(0).values(), strict=True))
    for layer in ("embed", 0, 1, 2):
        for index, position in enumerate(lens.rows[0].positions):
            word = patches.get(position, "</s>")
            if layer == 2 and position == prompt.layout.last:
                word = HERE
            token, prob = lens.top(layer, index)[0]
            assert token == word and prob > 0.99999


def looked_at(vlm, prompt) -> dict[tuple[int, int], list[int]]:
    """Where each head looks from each position; every pattern is one-hot."""
    _, cache = vlm.run_with_cache(prompt, names_filter="blocks.*.attn.hook_pattern")
    found = {}
    for layer, head in HEADS:
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, head]
        assert pattern.max(-1).values.min() > 1 - 1e-6
        found[layer, head] = pattern.argmax(-1).tolist()
    return found


def test_attention_on_a_picture(vlm, prompt) -> None:
    layout, wanted = prompt.layout, {place: [0] * prompt.length for place in HEADS}
    patches = layout.image[0].positions
    wanted[QUESTION][layout.last] = layout.find("b3")
    wanted[PREVIOUS] = [0 if p in patches else max(p - 1, 0) for p in range(prompt.length)]
    wanted[ANSWER][layout.last] = layout.image[0].patch(2, 1)
    assert looked_at(vlm, prompt) == wanted


def test_attention_on_text(vlm) -> None:
    prompt = vlm.prompt(COPY)
    layout, ids = prompt.layout, prompt.layout.token_ids
    colons = layout.find_all(":")
    wanted = {place: [0] * prompt.length for place in HEADS}
    for colon in colons[1:]:
        wanted[QUESTION][colon] = colon - 3
    wanted[PREVIOUS] = [max(p - 1, 0) for p in range(prompt.length)]
    wanted[ANSWER][layout.last] = layout.find("red")
    found = looked_at_one(vlm, prompt, {INDUCTION})
    for place in set(HEADS) - {INDUCTION}:
        assert found[place] == wanted[place], place
    pattern = found[INDUCTION]
    for position in range(prompt.length):
        before = [p + 1 for p in range(position) if ids[p] == ids[position]]
        spread = before if before and position not in colons else [0]
        assert pattern[position] == pytest.approx({p: 1 / len(spread) for p in spread}, abs=1e-4)


def looked_at_one(vlm, prompt, spread: set) -> dict:
    """As `looked_at`, but for some heads the weights above a hundredth at each position."""
    _, cache = vlm.run_with_cache(prompt, names_filter="blocks.*.attn.hook_pattern")
    found: dict = {}
    for layer, head in HEADS:
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, head]
        if (layer, head) not in spread:
            found[layer, head] = pattern.argmax(-1).tolist()
            continue
        found[layer, head] = [
            {int(p): float(row[p]) for p in (row > 0.01).nonzero()} for row in pattern
        ]
    return found


# ---------------------------------------------------------------------------- what is told


def test_the_code_of_the_card_runs() -> None:
    text = (zoo.path("toy-induction") / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
