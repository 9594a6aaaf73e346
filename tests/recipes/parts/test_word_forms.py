"""The tokens that stand for a word, in tokenizers of several kinds."""

from __future__ import annotations

from vlm_lens.recipes.parts.word_forms import answer_forms, word_forms


def test_a_byte_level_tokenizer(load):
    vlm = load("qwen2")
    found = word_forms(vlm, ["capital"])
    assert set(found.values()) <= {
        f"{space}{form}"
        for space in ("", " ")
        for form in ("capital", "Capital", "capitals", "Capitals")
    }
    assert " capital" in found.values()
    for token, text in found.items():
        assert vlm.to_tokens(text) == [token]
    several = word_forms(vlm, ["capital", "country"])
    assert found.items() <= several.items() and " country" in several.values()
    (first,) = word_forms(vlm, ["zyxw"])  # no form of it is one token
    assert first == vlm.to_first_token("zyxw")
    assert [vlm.to_string([i]) for i in answer_forms(vlm, "green")] == ["gree", " green"]
    assert answer_forms(vlm, "Paris") == (vlm.to_single_token("Paris"),)  # " P" says less


def test_a_tokenizer_of_words(toy):
    assert set(word_forms(toy, ["capital"]).values()) == {"capital", " capital"}
    assert next(iter(word_forms(toy, ["capital"]))) == toy.to_single_token("capital")
    assert answer_forms(toy, "Paris") == (toy.to_single_token("Paris"),)


def test_plurals():
    from vlm_lens.recipes.parts.word_forms import _plural

    assert [_plural(w) for w in ("color", "currency", "boy", "class", "branch")] == [
        "colors", "currencies", "boys", "classes", "branches",
    ]  # fmt: skip
