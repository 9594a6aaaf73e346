"""What is said, what of it is learned, and what is never said."""

from __future__ import annotations

from vlm_lens.zoo.smol.corpus import IMAGE, encoded, naming_rows, sentence_rows
from vlm_lens.zoo.smol.sentences import FACTS, NAMINGS, PICTURED, PORTRAITS
from vlm_lens.zoo.smol.unrelated import WORD_TASKS, unrelated_prompts
from vlm_lens.zoo.train.world import load_world


def learned(tokenizer, ids, weights):
    return tokenizer.decode([i for i, w in zip(ids, weights, strict=True) if w]).strip()


def test_what_is_learned(tokenizer):
    backend = tokenizer.backend_tokenizer

    def of(text, slots, tokens=4):
        ids, weights = encoded(backend, text, slots, tokens)
        assert len(ids) == len(weights)
        return learned(tokenizer, ids, weights)

    assert of("{N} has the capital {A}.", {"N": "France", "A": "Paris"}) == "Paris"
    assert of("{A} is the capital of {N}.", {"N": "France", "A": "Paris"}) == "France"
    assert of("<image>\nThis is {N}.", {"N": "France"}) == "France"
    assert of("The country<image> pays in {A}.", {"A": "Euro"}) == "Euro"
    assert of("{N} is not learned.<image>", {"N": "France"}) == ""
    ids, _ = encoded(backend, "a<image>b", {}, 4)
    assert ids.count(IMAGE) == 4 and ids[1:5] == [IMAGE] * 4


def test_every_word_stands_in_its_row(tokenizer, world):
    backend = tokenizer.backend_tokenizer
    pictures = {e.image: i for d in world.domains for i, e in enumerate(world.entities[d])}
    rows = sentence_rows(world, backend)
    assert all(picture == -1 and any(weights) for _, weights, picture in rows)
    assert any(learned(tokenizer, ids, w) == "Luanda" for ids, w, _ in rows)
    plain, more = naming_rows(world, backend, pictures, 4, captions=True, pictured=True)
    entities = sum(len(e) for e in world.entities.values())
    assert len(plain) == entities * len(NAMINGS["food"])
    assert all(picture >= 0 and ids.count(IMAGE) == 4 for ids, _, picture in plain + more)
    nothing = naming_rows(world, backend, pictures, 4, captions=False, pictured=False)
    assert len(nothing[0]) == len(plain) and nothing[1] == []


def test_nothing_is_planted():
    """No wording has the queries' form, shows several entities, or examples."""
    said = [
        w for group in (NAMINGS, FACTS, PORTRAITS, PICTURED) for ws in group.values() for w in ws
    ]
    for wording in said:
        assert "Q:" not in wording and "A:" not in wording
        assert wording.count("<image>") <= 1
        assert not ("<image>" in wording and "{N}" in wording and "{A}" in wording)
    names = {e.name.lower() for es in load_world().entities.values() for e in es}
    for pairs in WORD_TASKS.values():  # nor do the prompts that the model must stay the same on
        assert not names & {a.lower() for a, _ in pairs}
        assert not names & {b.lower() for _, b in pairs}
    assert "france" in names


def test_prompts_of_word_tasks(tokenizer):
    rows = unrelated_prompts(tokenizer.backend_tokenizer, 5, 30, seed=3)
    assert rows.shape == (5, 30)
    assert all(tokenizer.decode(row).startswith("Q:") for row in rows)
    again = unrelated_prompts(tokenizer.backend_tokenizer, 5, 30, seed=3)
    assert rows.equal(again)
