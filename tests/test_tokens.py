"""Tokens as text, on tokenizers of both kinds."""

from __future__ import annotations

import pytest
import tiny

from vlm_lens.errors import PromptError
from vlm_lens.tokens import encode, first_token, single_token, string_token, string_tokens

TEXTS = ["Q:Greece\nA: Athens\n\nQ:Peru", "the colour of  the country", "a?b,c.", "Zoo vex"]


@pytest.fixture(params=["bytes", "pieces"])
def tokenizer(request):
    return tiny.tokenizer(request.param)


@pytest.mark.parametrize("text", TEXTS)
def test_joined_they_are_the_text(tokenizer, text):
    joined = "".join(string_tokens(tokenizer, encode(tokenizer, text)))
    assert joined.removeprefix(" ") == text  # pieces put a space in front
    assert joined in (text, " " + text)


def test_special_tokens_and_ids_beyond(tokenizer):
    assert string_token(tokenizer, tokenizer.bos_token_id) == "<s>"
    assert string_token(tokenizer, tokenizer.pad_token_id) == "<pad>"
    assert string_token(tokenizer, 100_000) == "<100000>"
    assert string_tokens(None, [1, 2]) == ()


def test_a_newline_is_a_newline(tokenizer):
    assert "\n" in string_tokens(tokenizer, encode(tokenizer, "a\nb"))


def test_single_token(tokenizer):
    assert string_token(tokenizer, single_token(tokenizer, "Q:" if " Q:" in string_tokens(
        tokenizer, encode(tokenizer, "Q:")) else "Q")).strip() in ("Q", "Q:")  # fmt: skip
    with pytest.raises(PromptError, match="tokens of this model, .* not one"):
        single_token(tokenizer, "Greece and Peru")
    with pytest.raises(PromptError, match="no processor"):
        single_token(None, "a")


def test_first_token(tokenizer):
    for text in ("Athens", "Greece and Peru"):
        shown = string_token(tokenizer, first_token(tokenizer, text)).strip()
        assert shown
        assert text.startswith(shown)
    with pytest.raises(PromptError, match="gives no token"):
        first_token(tokenizer, "")


def test_through_the_model(load):
    vlm = load("clip-qwen2")
    ids = vlm.to_tokens("Q:Greece")
    assert vlm.tokenizer.decode(ids) == "Q:Greece"
    assert vlm.to_str_tokens("Q:Greece") == list(string_tokens(vlm.tokenizer, ids))
    assert vlm.to_single_token("Greece") == ids[-1]
    assert vlm.to_first_token("Greece and") == ids[-1]
    prompt = vlm.prompt("Q:<image>\nA:", [tiny.noise_picture()])
    assert vlm.to_str_tokens(prompt) == list(prompt.layout.strings)
