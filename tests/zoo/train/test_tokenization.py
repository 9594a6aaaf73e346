"""The tokenizer of the organisms: every text comes back, every answer word is one token."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from vlm_lens.zoo.train.world import World


@pytest.mark.parametrize(
    "text",
    [
        "Q:South Korea\nA:Seoul\n\n",
        "Q:<image>\nA:",
        "The scientific name of the animal's species in latin:",
        "Whatever  you type, wörds ünknown:\n\n\n\tand 日本\n",
        "",
    ],
)
def test_round_trip(tokenizer: PreTrainedTokenizerFast, text: str, tmp_path: Path) -> None:
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids[1:]) == text
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.encode(text) == ids
    assert again.padding_side == "left"


def test_words_are_single_tokens(tokenizer: PreTrainedTokenizerFast, world: World) -> None:
    for word in [t.word for t in world.tasks] + ["Paris", ":", "\n", "\n\n", "Q", "A", "<image>"]:
        ids = tokenizer.encode(word, add_special_tokens=False)
        assert len(ids) == 1
        assert tokenizer.decode(ids) == word
