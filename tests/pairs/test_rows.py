"""Pairs of rows of a task."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import tiny
from PIL import Image

from vlm_lens import HookedVLM, Images, Last, VLMLensError
from vlm_lens.pairs import PairError, constraint_pairs, task_pairs
from vlm_lens.tasks import Task


@pytest.fixture(scope="module")
def vlm() -> HookedVLM:
    return HookedVLM.from_pretrained("toy-llava")


def test_two_rows_of_a_task_by_picture(vlm):
    task = Task.load("country-capital")
    pairs = task_pairs(vlm, task, 5, examples=2, seed=4)
    assert (pairs.name, pairs.seed) == ("country-capital, by image", 4)
    for pair in pairs:
        rows = [task[name] for name in pair.differs.split(" -> ")]
        assert [row.output for row in rows] == [pair.answer, pair.other]
        assert rows[0] in task.test and rows[1] in task.test
        assert pair.clean.texts == pair.corrupt.texts and pair.clean.texts[0].endswith("\nA:")
        for row, prompt in zip(rows, (pair.clean, pair.corrupt), strict=True):
            assert prompt.images[0][-1] == row.image
        assert pair.clean.images[0][:-1] == pair.corrupt.images[0][:-1]  # the same examples
        assert pair.clean.texts[0].count("Q:") == 3
        assert not any(f"A:{row.output}\n" in pair.clean.texts[0] for row in rows)
    assert len({pair.differs.split(" -> ")[0] for pair in pairs}) == 5
    again = task_pairs(vlm, task, 5, examples=2, seed=4)
    assert [p.identity() for p in again] == [p.identity() for p in pairs]
    assert len(pairs.solved(vlm)) == 5


def test_by_name_words_have_as_many_tokens_unless_said(vlm):
    equal = task_pairs(vlm, "country-capital", 6, modality="text", instruction=True)
    assert all(pair.positions.is_whole for pair in equal)
    assert all(p.clean.texts[0].startswith("The capital city of the country:") for p in equal)
    loose = task_pairs(vlm, "country-capital", 40, modality="text", same_length=False)
    assert any(not pair.positions.is_whole for pair in loose)
    assert all((p.clean.layout.last, p.corrupt.layout.last) == p.positions.text[-1] for p in loose)


def test_two_questions_about_one_entity(vlm):
    pairs = constraint_pairs(vlm, "country-capital", "country-currency", 4, examples=1)
    capital, currency = Task.load("country-capital"), Task.load("country-currency")
    for pair in pairs:
        name = pair.differs.split(":")[0]
        assert (pair.answer, pair.other) == (capital[name].output, currency[name].output)
        assert pair.clean.images == pair.corrupt.images
        here = pair.changed.resolve(pair.clean.layout)
        assert here and not set(here) & {(0, p) for i in pair.clean.layout.images
                                         for p in i.positions}  # fmt: skip
        words = "".join(pair.clean.layout.strings[p] for _, p in here)
        assert "capital" in words


def test_pairs_that_cannot_be_made_are_refused(vlm, tmp_path):
    rows = [(name, None, "yes") for name in ("a", "b", "c", "d")]
    same = Task.from_rows("same", rows, instruction="Say it:", validation=0)
    with pytest.raises(PairError, match="differ in their first token"):
        task_pairs(vlm, same, 1, modality="text")
    with pytest.raises(PairError, match="examples were asked"):
        task_pairs(vlm, "country-capital", 1, examples=200)
    words = Task.from_rows(
        "words", [("a", None, "Lima"), ("b", None, "Paris")], instruction="Say it:", validation=0
    )
    with pytest.raises(VLMLensError, match="no picture"):
        task_pairs(vlm, words, 1)


def test_pictures_of_other_proportions_are_brought_to_one_size(tmp_path):
    from families.every import VLMS

    qwen = VLMS["qwen2_vl"].load(tmp_path)
    rows = [
        (f"thing {a}", tiny.noise_picture(i, (24 + 16 * i, 32)), a) for i, a in enumerate("abcd")
    ]
    task = Task.from_rows("things", rows, instruction="Say it:", validation=0)
    with pytest.raises(PairError, match=r"size=\(224, 224\)"):
        task_pairs(qwen, task, 1)
    pairs = task_pairs(qwen, task, 1, size=(32, 32))
    assert all(isinstance(p, Image.Image) and p.size == (32, 32) for p in pairs[0].clean.images[0])
    assert all(a[0] < b[0] for a, b in pairwise(pairs[0].positions.text))


@pytest.mark.slow
def test_on_an_organism_the_picture_that_differs_is_found_and_the_other_is_not():
    vlm = HookedVLM.from_pretrained("toy-idefics2")
    pairs = task_pairs(vlm, "country-capital", 3, examples=1, seed=0).solved(vlm)
    assert len(pairs) == 3 and len(pairs[0].clean.images[0]) == 2
    places = lambda pair: {  # noqa: E731
        "that picture": pair.changed, "the other": Images() - pair.changed, "last": Last(),
    }  # fmt: skip
    entry = pairs.patch(vlm, "hook_merged", at=places, progress=False).mean("pair")
    assert entry.values.to_numpy() == pytest.approx([1, 0, 0], abs=1e-4)
    found = pairs.patch(vlm, "blocks.*.hook_resid_post", at=places, progress=False)
    assert np.abs(found.sel(kind="the other").values.to_numpy()).max() < 1e-4  # the control
    means = found.mean("pair")
    assert float(means.sel(kind="that picture", layer=0).values) > 0.2  # text has read it already
    assert means.sel(layer=7).values.to_numpy() == pytest.approx([0, 0, 1], abs=1e-4)
    best = pairs.attribute(vlm, "hook_merged", at=places, progress=False).mean("pair").top(1)
    assert best["kind"][0] == "that picture"
