"""Each method finds on toy-induction exactly what was written into it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_lens import (
    Ablate,
    ActivationPatch,
    All,
    At,
    HookedVLM,
    Last,
    LogitLens,
    Patches,
    Steer,
    TaskVector,
    zoo,
)
from vlm_lens.sweep import Grid
from vlm_lens.zoo.induction import (
    ANSWER,
    DEFAULT,
    INDUCTION,
    PREVIOUS,
    QUESTION,
    SCALE,
    SLOTS,
    read_slot,
)

RGB = {
    "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0),
    "cyan": (0, 255, 255), "magenta": (255, 0, 255), "white": (255, 255, 255), "black": (0, 0, 0),
    "gray": (128, 128, 128),
}  # fmt: skip
NAMES = [f"{col}{row}" for row in "1234" for col in "abcd"]
HEADS = [(layer, head) for layer in range(3) for head in range(3)]
COPY = "Q:b3\nA:red\n\nQ:c1\nA:blue\n\nQ:b3\nA:"


def drawn(colors: dict[str, str], side: int = 224) -> Image.Image:
    """A picture in which some cells hold a square of a color."""
    image = Image.new("RGB", (side, side), RGB["gray"])
    draw, step, edge = ImageDraw.Draw(image), side // 4, side // 40
    for name, color in colors.items():
        x, y = "abcd".index(name[0]) * step, (int(name[1]) - 1) * step
        box = (x + edge, y + edge, x + step - edge - 1, y + step - edge - 1)
        draw.rectangle(box, fill=RGB[color])
    return image


def full(shift: int) -> dict[str, str]:
    """A color for each cell; with another shift each cell has another color."""
    colors = list(RGB)
    return {name: colors[(i + shift) % 9] for i, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def vlm() -> HookedVLM:
    return HookedVLM.from_pretrained("toy-induction")


@pytest.fixture(scope="module")
def tokens(vlm: HookedVLM) -> list[str]:
    return vlm.tokenizer.convert_ids_to_tokens(range(len(vlm.tokenizer)))


@pytest.fixture(scope="module")
def prompt(vlm: HookedVLM):
    return vlm.prompt("Q:<image>b3\nA:", images=[drawn(full(0))])


@pytest.fixture(scope="module")
def donor(vlm: HookedVLM):
    """The same question about a picture in which every cell has another color."""
    return vlm.prompt("Q:<image>b3\nA:", images=[drawn(full(1))])


HERE, THERE = full(0)["b3"], full(1)["b3"]


def top(vlm: HookedVLM, logits: Tensor) -> list[str]:
    """The most likely token at each last position."""
    return [vlm.tokenizer.convert_ids_to_tokens(i) for i in logits[:, -1].argmax(-1).tolist()]


def chirps(tokens: list[str]) -> np.ndarray:
    """The codes by their definition, in complex numbers, `[tokens, 23]`."""
    first = ["<image>", *NAMES, "<s>", "</s>", "<pad>", "<unk>", "Q", "A"]
    first += [c for c in RGB if c != "gray"] + ["gray"]
    order = first + [t for t in tokens if t not in first]
    a, b = np.divmod([order.index(t) for t in tokens], 23)
    n = np.arange(23)
    return np.exp(2j * np.pi / 23 * (np.outer(a, n * n) + np.outer(b, n))) / np.sqrt(23)


def expected(tokens: list[str], word: str | None) -> np.ndarray:
    """Logits where OUT holds a word, or nothing."""
    codes = chirps(tokens)
    logits = np.zeros(len(tokens))
    if word is not None:
        logits = SCALE * (codes @ codes[tokens.index(word)].conj()).real
    logits[tokens.index("</s>")] += DEFAULT
    return logits


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
        np.testing.assert_allclose(logits[position], expected(tokens, word), atol=2e-3)


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
    np.testing.assert_allclose(logits[0, -1], wanted, atol=2e-3)


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
        norms = residual.norm(dim=-1)
        assert ((norms - 1024).abs() < 6 / 2048 + 1e-4).all()
    last = {
        "hook_merged": [[":"], [":"], [], [], [], []],
        "blocks.0.hook_resid_post": [[":"], [":"], ["b3"], [], [], []],
        "blocks.1.hook_resid_post": [[":"], [":"], ["b3"], [], ["A"], []],
        "blocks.2.hook_resid_post": [[":"], [":"], ["b3"], [], ["A"], [HERE]],
    }
    for point, held in last.items():
        residual = cache[point][0, -1]
        assert [slot_words(vlm, residual, slot)[0] for slot in SLOTS] == held, point


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
    for layer in range(4):
        for index, position in enumerate(lens.rows[0].positions):
            word = patches.get(position, "</s>")
            if layer == 3 and position == prompt.layout.last:
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
        assert pattern[position] == pytest.approx({p: 1 / len(spread) for p in spread}, abs=1e-3)


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


# ---------------------------------------------------------------------------- what changes it

POINTS = (
    "vision.hook_embed", "vision.blocks.0.hook_resid_mid", "vision.hook_out", "projector.hook_in",
    "projector.hook_out", "hook_merged", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post",
    "blocks.2.hook_resid_post",
)  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_patching_a_patch(vlm, prompt, donor, point: str) -> None:
    plain = vlm.run(prompt)[0, -1]
    _, cache = vlm.run_with_cache(donor, names_filter=[point])
    for number, name in enumerate(NAMES):
        at = Patches(0, rows=number // 4, cols=number % 4)
        logits = vlm.run(prompt, interventions=ActivationPatch(point, at=at, value=cache))
        if name == "b3" and point != "blocks.2.hook_resid_post":
            assert top(vlm, logits) == [THERE]
            assert logits[0, -1].max() == pytest.approx(SCALE, abs=1e-3)
        else:
            torch.testing.assert_close(logits[0, -1], plain, atol=1e-4, rtol=0)


def test_sweep_over_layers_and_positions(vlm, prompt, donor) -> None:
    """The last position takes over after the last block; before it, the named patch alone."""
    _, cache = vlm.run_with_cache(donor, names_filter="blocks.*.hook_resid_post")
    positions = range(1, prompt.length)
    variants = [
        ActivationPatch(f"blocks.{layer}.hook_resid_post", at=At((p,)), value=cache)
        for layer in range(3)
        for p in positions
    ]
    swept = vlm.sweep(prompt, variants, measure="top1", progress=False)
    assert set(swept.engines) == {"replay"}
    patch = prompt.layout.image[0].patch(2, 1)
    takes_over = {(0, patch), (1, patch), (2, prompt.layout.last)}
    places = [(layer, p) for layer in range(3) for p in positions]
    for place, record in zip(places, swept.records, strict=True):
        assert record["token"] == (THERE if place in takes_over else HERE), place


@pytest.mark.parametrize(
    ("text", "at", "needed"),
    [
        ("image", Last(), {QUESTION, ANSWER}),
        ("image", All(), {QUESTION, ANSWER}),
        (COPY, Last(), {QUESTION, ANSWER}),
        (COPY, All(), {QUESTION, PREVIOUS, ANSWER}),
        ("x y z q x", Last(), {INDUCTION}),
        ("x y z q x", All(), {PREVIOUS, INDUCTION}),
    ],
)
def test_knocking_out_heads(vlm, prompt, text: str, at, needed: set) -> None:
    asked = prompt if text == "image" else vlm.prompt(text)
    plain = vlm.run(asked)[0, -1]
    for layer, head in HEADS:
        off = Ablate(f"blocks.{layer}.attn.hook_z", at=at, heads=[head])
        logits = vlm.run(asked, interventions=off)
        if (layer, head) in needed:
            assert top(vlm, logits) == ["</s>"]
        else:
            torch.testing.assert_close(logits[0, -1], plain, atol=1e-4, rtol=0)


def test_a_grid_of_heads(vlm, prompt) -> None:
    grid = Grid("blocks.*.attn.hook_z", at=Last(), vectors=0.0, heads=range(3))
    swept = vlm.sweep(prompt, grid, progress=False).to_dataframe()
    assert len(swept) == 9 and (swept["token"] == "</s>").sum() == 2


def test_attention_knockout(vlm, prompt) -> None:
    """Of all weights from the last position, one matters: the answer head's at the named patch."""
    layer, head = ANSWER
    plain = vlm.run(prompt)[0, -1]
    for key in range(prompt.length):

        def cut(pattern: Tensor, hook, key: int = key) -> Tensor:
            pattern[0, head, -1, key] = 0
            return pattern

        point = f"blocks.{layer}.attn.hook_pattern"
        logits = vlm.run_with_hooks(prompt, fwd_hooks=[(point, cut)])
        if key == prompt.layout.image[0].patch(2, 1):
            assert top(vlm, logits) == ["</s>"]
        else:
            torch.testing.assert_close(logits[0, -1], plain, atol=1e-4, rtol=0)


def test_nothing_else_computes(vlm, prompt) -> None:
    """The language model's MLPs and the tower's attention add nothing at all."""
    names = ["blocks.*.hook_mlp_out", "vision.blocks.*.hook_attn_out"]
    _, cache = vlm.run_with_cache(prompt, names_filter=names)
    assert all(float(cache[name].abs().max()) == 0 for name in cache)


@pytest.mark.parametrize("source", ["Q:c1\nA:", "Q:b3\nA:red\n\nQ:c1\nA:", "image"])
def test_a_vector_brings_the_question_then_the_answer(vlm, prompt, source: str) -> None:
    read = vlm.prompt("Q:<image>c1\nA:", images=[drawn(full(1))]) if source == "image" else source
    vector = TaskVector.read(vlm, [read], at=Last())
    patch = ActivationPatch("blocks.*.hook_resid_post", at=Last(), value=vector)
    swept = vlm.sweep(prompt, patch.each_layer(), progress=False)
    answer = full(1)["c1"] if source == "image" else "</s>"
    here = full(0)["c1"]
    assert [r["token"] for r in swept.records] == [here, here, answer]


def test_steering_by_codes(vlm, tokens, prompt) -> None:
    codes = chirps(tokens)

    def turn(slot: str, away: str, to: str) -> Tensor:
        difference = codes[tokens.index(to)] - codes[tokens.index(away)]
        vector = torch.zeros(vlm.cfg.d_model)
        vector[SLOTS[slot]] = torch.tensor(np.r_[difference.real, difference.imag]).float()
        return vector

    for slot, away, to, layer, said in (
        ("NAME", "b3", "c1", 0, full(0)["c1"]),
        ("NAME", "b3", "c1", 1, full(0)["c1"]),
        ("NAME", "b3", "c1", 2, HERE),
        ("OUT", HERE, "white", 2, "white"),
        ("OUT", HERE, "white", 0, "white"),  # added early, it stays: nothing reads OUT
    ):
        edit = Steer(f"blocks.{layer}.hook_resid_post", at=Last(), vector=turn(slot, away, to))
        assert top(vlm, vlm.run(prompt, interventions=edit)) == [said], (slot, layer)


# ---------------------------------------------------------------------------- what is told


def test_the_code_of_the_card_runs() -> None:
    text = (zoo.path("toy-induction") / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
