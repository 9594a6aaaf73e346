"""Tokens as text, on tokenizers of both kinds."""

from __future__ import annotations

import copy

import pytest
import tiny
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from vlm_lens import HookedVLM
from vlm_lens.errors import PromptError
from vlm_lens.tokens import (
    encode,
    first_token,
    single_token,
    string_token,
    string_tokens,
    text_pieces,
)

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


# ---------------------------------------------------------------------- characters over tokens

SPLIT = ["Côte d'Ivoire", "国旗 is a flag", "Zoë 🇨🇮 née", "ô", "a\u0301"]


def bytes_of_pieces() -> PreTrainedTokenizerFast:
    """Sentencepiece's way: what is not in the alphabet is a token for each byte."""
    alphabet = "abcdefghijklmnopqrstuvwxyzACIQZ:'\n" + "\u2581"
    words = ["<unk>", "<s>", *alphabet, *(f"<0x{i:02X}>" for i in range(256))]
    bpe = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>",
                               byte_fallback=True))  # fmt: skip
    bpe.normalizer = normalizers.Replace(" ", "\u2581")
    bpe.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
    ])  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>")


@pytest.fixture(params=["bytes", "pieces"])
def splitting(request):
    return tiny.tokenizer("bytes") if request.param == "bytes" else bytes_of_pieces()


@pytest.mark.parametrize("text", SPLIT)
def test_characters_over_several_tokens_are_joined(splitting, text):
    tokenizer = splitting
    ids = encode(tokenizer, text)
    assert "".join(text_pieces(tokenizer, ids)).removeprefix(" ") == text
    shown = string_tokens(tokenizer, ids)
    assert not any("\ufffd" in s for s in shown)
    if len(ids) > len(text) + 1:
        assert any("\\x" in s or s.startswith("<0x") for s in shown)


NORMALISED = [
    (normalizers.NFC(), "Cafe\u0301 noir"),  # as macOS writes names of files
    (normalizers.NFD(), "Zo\u00eb"),
    (normalizers.NFKC(), "\ufb01sh\uff1a"),  # a ligature, and a colon as wide as a letter
]


@pytest.mark.parametrize("normalizer, text", NORMALISED)
def test_a_text_that_the_tokenizer_has_normalised_is_found_as_it_was_typed(load, normalizer, text):
    qwen = load("clip-qwen2")
    tokenizer = copy.deepcopy(qwen.tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizer
    vlm = HookedVLM(qwen.hf_model, tokenizer)
    layout = vlm.prompt(f"Q:{text}\nA:{text} B").layout
    assert text not in "".join(layout.strings)
    for n in (0, 1):
        place = layout.span(text, n)
        shown = tokenizer.decode([layout.token_ids[p] for p in place])
        assert shown == normalizer.normalize_str(text)
        assert layout.find(text, n) == place[-1]
    assert layout.find(normalizer.normalize_str(text)) == place[-1]


@pytest.mark.parametrize("text", SPLIT)
def test_they_are_found_and_placed(load, text):
    qwen = load("clip-qwen2")
    for reader in (qwen.tokenizer, bytes_of_pieces()):
        vlm = HookedVLM(qwen.hf_model, reader)
        before, after = vlm.to_tokens("Q:"), vlm.to_tokens("\nA:")
        ids = [*before, *vlm.to_tokens(text), *after]
        layout = vlm.as_prompt({"input_ids": [ids]}).layout
        place = layout.span(text)
        assert vlm.tokenizer.decode([ids[p] for p in place]).strip() == text
        assert layout.find(text) == place[-1]
        held = [p for p in place if p < place[-1]]
        assert all(layout.strings[p] for p in held)
        assert layout.find(text[-1]) == place[-1]


def test_bytes_that_are_no_character_stay_bytes(splitting):
    tokenizer = splitting
    ids = encode(tokenizer, "ô")
    alone = string_tokens(tokenizer, ids[:-1])
    assert "\ufffd" not in "".join(alone)
    assert "".join(text_pieces(tokenizer, [ids[-1], *encode(tokenizer, "a")])).endswith("a")
    assert len(string_tokens(tokenizer, ids[-1:] * 20)) == 20
    whole = encode(tokenizer, "a\ufffdb")  # the sign itself, written in a text
    assert "".join(text_pieces(tokenizer, whole)).strip() == "a\ufffdb"
