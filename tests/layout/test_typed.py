"""Text as it was typed, found through the tokenizer's own offsets."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import tiny
from tokenizers import normalizers

from vlm_lens import HookedVLM
from vlm_lens.errors import PositionError
from vlm_lens.layout.layout import Layout
from vlm_lens.serial import load, save
from vlm_lens.tokens import spans_of_text

STRIPPED = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
# how a tokenizer changes a text, what was typed, and what its tokens give back
CHANGED = [
    (normalizers.Lowercase(), "GREECE", "greece"),
    (STRIPPED, "Cr\u00e8me", "Creme"),
    (normalizers.Replace("''", '"'), "''red''", '"red"'),
    (normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]), "\uff31A", "qa"),
]


def reader(load, normalizer, name: str = "clip-qwen2"):
    vlm = load(name)
    processor = copy.deepcopy(vlm.processor)
    processor.tokenizer.backend_tokenizer.normalizer = normalizer
    return HookedVLM(vlm.hf_model, processor)


@pytest.mark.parametrize(("normalizer", "typed", "given"), CHANGED)
@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_what_was_typed_is_found_beside_pictures(load, normalizer, typed, given, pictures):
    vlm = reader(load, normalizer)
    text = "<image>" * pictures + f"Q:{typed} {typed}!\nA:"
    layout = vlm.prompt(text, [tiny.noise_picture()] * pictures or None).layout
    said = "".join(layout.strings)
    assert typed not in said and said.count(given) == 2
    for n in (0, 1):
        span = layout.span(typed, n)
        assert layout.find(typed, n) == span[-1]
        shown = "".join(layout.strings[p] for p in span)
        assert given in shown and given not in shown[len(layout.strings[span[0]]) :]
        assert layout.span(given, n) == span  # as the tokens give it back, too
    with pytest.raises(PositionError, match="does not occur"):
        layout.find(typed + "?")


def test_each_row_of_a_padded_batch_and_a_saved_layout(load, tmp_path):
    vlm = reader(load, normalizers.Lowercase())
    texts = ["Q:Greece is A <image>A:", "B <image>"]
    batch = vlm.prompt(texts, [[tiny.noise_picture()]] * 2)
    for layout, text, word in zip(batch.layouts, texts, ("A", "B"), strict=True):
        alone = vlm.prompt(text, [tiny.noise_picture()]).layout
        shift = len(layout) - len(alone)
        assert layout.find(word) == alone.find(word) + shift
        assert layout.strings[layout.find(word)].strip() == word.lower() or word == "A"
    save(batch.layouts[1], tmp_path / "layout")
    again = load_layout(tmp_path / "layout")
    assert again.find("B") == batch.layouts[1].find("B")


def load_layout(path) -> Layout:
    return load(path, Layout)


def test_an_unchanged_text_needs_no_offsets(vlm):
    assert vlm.prompt("Q:Greece\nA:").layout.typed is None
    assert vlm.prompt(["Q:Greece\nA:", "Q:"]).layouts[1].typed is None


def test_a_space_belongs_to_the_word_after_it(load):
    layout = reader(load, normalizers.Lowercase()).prompt("Q:A RED B").layout
    assert layout.find(" ", 0) <= layout.find("RED")
    assert layout.span("A RED")[-1] == layout.find("D")
    assert layout.span(" RED")[0] >= layout.find("A")


def test_tokens_of_another_text_have_no_spans(load):
    tokenizer = load("clip-qwen2").tokenizer
    ids = tokenizer("Q:Greece", add_special_tokens=False)["input_ids"]
    assert spans_of_text(tokenizer, "Q:Greece", ids) is not None
    assert spans_of_text(tokenizer, "Q:Peru", ids) is None
    added = spans_of_text(tokenizer, "Q:Greece", [1, *ids, 2])
    assert added[0] is None and added[-1] is None and None not in added[1:-1]
    marked = spans_of_text(tokenizer, "Q:<mark>Greece", ids, ["<mark>"])
    assert marked is None or "".join("Q:<mark>Greece"[a:b] for a, b in marked) == "Q:Greece"

    class Slow:
        is_fast = False

    assert spans_of_text(Slow(), "Q:", ids) is None


@pytest.mark.parametrize(
    "text", ["<image>\nQ:Peru\nA:", "Q:<image>Greece <image>A", "<image>C\u00f4te:"]
)
def test_what_is_typed_and_what_tokens_give_back_are_at_one_place(vlm, text):
    layout = vlm.prompt(text, [tiny.noise_picture()] * text.count("<image>")).layout
    given = replace(layout, typed=None)
    for word in ("Q:", "Peru", "Greece", "ree", "A", "\u00f4te", ":", "C\u00f4"):
        if word in text and word in "".join(layout.strings):
            assert layout.find(word) == given.find(word), word
            assert layout.span(word, 0) == given.span(word, 0), word
