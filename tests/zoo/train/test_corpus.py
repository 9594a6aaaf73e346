"""Rows of the corpus are prompts as they are written elsewhere, with what is learnt from each."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from vlm_lens.zoo.train.configs import Shape
from vlm_lens.zoo.train.corpus import Corpus
from vlm_lens.zoo.train.llava import Llava
from vlm_lens.zoo.train.world import World

TOKENS = 4


@pytest.fixture(scope="module")
def corpus(world: World, tokenizer: PreTrainedTokenizerFast) -> Corpus:
    """Build a corpus with four tokens a picture."""
    return Corpus(world, tokenizer, Llava(Shape(image_size=16, patch_size=8)), True)


def text_of(corpus: Corpus, ids: list[int]) -> str:
    """Decode a row, with one `<image>` per picture."""
    text = corpus.tokenizer.decode(ids[1:])
    return text.replace("<image>" * TOKENS, "<image>")


@pytest.mark.parametrize("modality", ["text", "image"])
def test_rows_are_the_prompt_format(corpus: Corpus, modality: str) -> None:
    rng = np.random.default_rng(0)
    for row in corpus.context_rows(rng, 20, 3, modality, spelled=0.0):
        text = text_of(corpus, row.ids)
        pairs = text.split("\n\n")
        assert pairs.pop() == ""
        assert len(pairs) == 4
        assert all(p.startswith("Q:") and "\nA:" in p for p in pairs)
        expanded = text.replace("<image>", "<image>" * TOKENS)
        assert row.ids == corpus.tokenizer.encode(expanded)
        colon = corpus.tokenizer.convert_tokens_to_ids(":")
        assert row.ids[row.open_delimiter] == colon
        assert all(row.ids[position] == colon for position, _ in row.delimiters)


def test_no_prompt_mixes_modalities(corpus: Corpus) -> None:
    rng = np.random.default_rng(0)
    image = corpus.tokenizer.convert_tokens_to_ids("<image>")
    rows = corpus.context_rows(rng, 50, 4, "text", instructed=0.5, spelled=0.3)
    rows += corpus.bare_rows(rng, 20, "text")
    rows += corpus.target_rows(rng, corpus.world.tasks)
    assert all(set(r.modalities) == {"text"} and image not in r.ids for r in rows)
    rows = corpus.context_rows(rng, 50, 4, "image") + corpus.bare_rows(rng, 20, "image")
    for row in rows:
        assert set(row.modalities) == {"image"}
        assert len(row.pictures) == len(row.modalities)
        assert row.ids.count(image) == TOKENS * len(row.pictures)
        names = {e.name for d in corpus.world.domains for e in corpus.world.entities[d]}
        if len(row.modalities) > 1:
            questions = text_of(corpus, row.ids).split("\nA:")[:-1]
            assert not names & {q.split("Q:")[-1] for q in questions}
    with pytest.raises(ValueError, match="mixes modalities"):
        corpus.context_rows(rng, 1, 2, "image", instructed=0.5)


def test_the_first_answer_without_instruction_is_out_of_the_loss(corpus: Corpus) -> None:
    rng = np.random.default_rng(0)
    for row in corpus.context_rows(rng, 20, 3, "text"):
        assert sum(first for *_, first in row.losses) == 3
    for row in corpus.context_rows(rng, 20, 3, "text", instructed=1.0):
        assert sum(first for *_, first in row.losses) == 2
