"""Prompts with words replaced."""

from __future__ import annotations

import pytest
import tiny

from vlm_lens.pairs import PairError, replaced_pair


def test_words_of_as_many_tokens(clip):
    prompt = clip.prompt("Q:<image>Peru\nA:", [tiny.noise_picture()])
    pair = replaced_pair(clip, prompt, replace={"Peru": "Lima"}, answer=17, other=29)
    assert pair.corrupt.texts == ("Q:<image>Lima\nA:",) and pair.positions.is_whole
    assert pair.corrupt.images == prompt.images
    span = prompt.layout.span("Peru")
    assert {p for _, p in pair.changed.resolve(prompt.layout)} <= set(span)
    assert pair.differs == "'Peru' -> 'Lima'"


def test_other_numbers_of_tokens_are_refused_unless_said(clip):
    options = {"replace": {"Peru": "Zzxq"}, "answer": 17, "other": 29}
    with pytest.raises(PairError, match="positions instead of"):
        replaced_pair(clip, "Q:Peru\nA:", **options)
    pair = replaced_pair(clip, "Q:Peru\nA:", same_length=False, **options)
    assert len(pair.clean.layout) != len(pair.corrupt.layout)
    assert (pair.clean.layout.last, pair.corrupt.layout.last) == pair.positions.text[-1]


def test_what_cannot_be_replaced_is_refused(clip):
    for replace, match in (
        ({"France": "Peru"}, "does not occur"),
        ({}, "changes nothing"),
        ({"Peru": "Peru"}, "changes nothing"),
        ({"Peru": "<image>"}, "is a picture"),
    ):
        with pytest.raises(PairError, match=match):
            replaced_pair(clip, "Q:Peru\nA:", replace=replace, answer=17, other=29)
