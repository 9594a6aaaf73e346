"""Pairs drawn from the grids, of which it is known where the difference lies."""

from __future__ import annotations

import numpy as np
import pytest
from induction_case import model

from vlm_lens import HookedVLM, Images, VLMLensError
from vlm_lens.pairs import PairError, grid_pairs

QUESTION = "Q:<image>{cell}\nA:"


@pytest.fixture(scope="module")
def vlm() -> HookedVLM:
    return model()


def differing(pair) -> tuple[int, int, int, int]:
    """The smallest box that holds every pixel in which the pictures differ."""
    one, two = (np.asarray(p.images[0][0]) for p in (pair.clean, pair.corrupt))
    rows, cols = (one != two).any(-1).nonzero()
    return cols.min(), rows.min(), cols.max(), rows.max()


def test_one_cell_differs_and_the_answers_are_those_of_the_pictures(vlm):
    for attribute in ("color", "shape"):
        pairs = grid_pairs(vlm, attribute, 6, question=QUESTION, seed=3)
        assert pairs.name == f"grid-{attribute}" and pairs.seed == 3
        for pair in pairs:
            layout = pair.clean.layout
            (cell,) = pair.changed.resolve(layout)
            x0, y0, x1, y1 = layout.image[0].pixels(cell[1])
            a, b, c, d = differing(pair)
            assert x0 <= a and y0 <= b and c < x1 and d < y1
            assert pair.differs == f"{attribute} {pair.answer} -> {pair.other}"
            name = f"{'abcd'[int(x0 // 56)]}{int(y0 // 56) + 1}"
            assert layout.strings[layout.find(name)] == name  # the question names that cell


def test_objects_that_move_or_go(vlm):
    for pair in grid_pairs(vlm, "position", 4, question="Q:<image>\nA:"):
        assert len(pair.changed.resolve(pair.clean.layout)) == 2  # where it was and where it is
    numbers = ("zero", "one", "two", "three", "four", "five", "six")
    for pair in grid_pairs(vlm, "count", 6, question="Q:<image>\nA:", gray=(0, 3)):
        assert numbers.index(pair.answer) - numbers.index(pair.other) == 1
        assert len(pair.changed.resolve(pair.clean.layout)) == 1


def test_patching_the_object_recovers_all_and_other_patches_nothing(vlm):
    pairs = grid_pairs(vlm, "color", 5, question=QUESTION)
    assert len(pairs.solved(vlm)) == 5
    at = lambda pair: {"object": pair.changed, "other patches": Images() - pair.changed}  # noqa: E731
    for points in ("vision.hook_embed", "projector.hook_out", "blocks.1.hook_resid_post"):
        found = pairs.patch(vlm, points, at=at, progress=False)
        for i in range(5):
            shares = found.sel(pair=i).values.to_numpy()
            assert shares == pytest.approx([1, 0], abs=1e-5), points


def test_draws_are_repeatable_and_wrong_settings_refused(vlm):
    one, two, other = (grid_pairs(vlm, "color", 3, question=QUESTION, seed=s) for s in (1, 1, 2))
    assert [p.identity() for p in one] == [p.identity() for p in two]
    assert [p.identity() for p in one] != [p.identity() for p in other]
    for options, match in (
        ({"attribute": "size"}, "attribute is one of"),
        ({"question": "Q:<image>{color}\nA:"}, "which is what is asked"),
        ({"attribute": "position", "question": QUESTION}, "which is what is asked"),
    ):
        with pytest.raises(PairError, match=match):
            grid_pairs(vlm, **options)
    with pytest.raises(VLMLensError, match="need 32 pixels or more"):
        grid_pairs(vlm, "color", 3, question=QUESTION, size=1)
