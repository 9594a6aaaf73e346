"""Pictures with a region filled, pixel by pixel; and pairs of them."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from PIL import Image

from vlm_lens.pairs import PairError, masked_pair
from vlm_lens.pairs.masking import filled

BOX = (8, 4, 24, 20)
PICTURE = tiny.noise_picture(0, (40, 32))


def inside(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.crop(BOX))


@pytest.mark.parametrize(
    "fill", ("mean", "around", "blur", "red", (1, 2, 3), tiny.noise_picture(5))
)
def test_pixels_outside_the_box_stay(fill):
    made = filled(PICTURE, BOX, fill)
    differs = (np.asarray(made) != np.asarray(PICTURE)).any(-1)
    x0, y0, x1, y1 = BOX
    assert differs[y0:y1, x0:x1].any()
    differs[y0:y1, x0:x1] = False
    assert not differs.any() and made.size == PICTURE.size


def test_what_the_box_is_filled_with():
    pixels = np.asarray(PICTURE).astype(float)
    assert np.unique(inside(filled(PICTURE, BOX, "red")).reshape(-1, 3), axis=0).tolist() == [
        [255, 0, 0]
    ]
    assert inside(filled(PICTURE, BOX, "mean"))[0, 0] == pytest.approx(
        pixels.mean((0, 1)), abs=0.51
    )
    ring = pixels[2:22, 6:26].sum((0, 1)) - pixels[4:20, 8:24].sum((0, 1))
    around = inside(filled(PICTURE, BOX, "around"))[0, 0]
    assert around == pytest.approx(ring / (20 * 20 - 16 * 16), abs=0.51)
    other = tiny.noise_picture(5, (16, 16))
    assert (inside(filled(PICTURE, BOX, other)) == np.asarray(other)).all()
    assert inside(filled(PICTURE, BOX, "blur")).std() < inside(PICTURE).std()


def test_the_pair_differs_in_the_patches_of_the_box(clip):
    picture = tiny.noise_picture(1, (32, 32))
    prompt = clip.prompt("Q:<image>\nA:", [picture])
    pair = masked_pair(clip, prompt, box=(8, 8, 16, 24), answer=17)
    layout = prompt.layout
    assert pair.other is None and pair.corrupt.texts == prompt.texts
    assert pair.changed.resolve(layout) == [(0, layout.image[0].patch(r, 1)) for r in (1, 2)]
    assert pair.differs == "picture 0 (8, 8, 16, 24) filled with mean"
    found = pair.patch(clip, "hook_merged", at=pair.changed, progress=False)
    assert found.about["measure"] == "LogProb(answer=17)"


def test_wrong_boxes_and_fills_are_refused(clip):
    prompt = clip.prompt("Q:<image>\nA:", [PICTURE])
    for options, match in (
        ({"box": (0, 0, 500, 5)}, "no part of this 40 x 32 picture"),
        ({"box": (5, 5, 5, 9)}, "no part of this"),
        ({"box": BOX, "fill": "noise"}, "fill is one of"),
        ({"box": BOX, "image": 1}, "image 1 was asked"),
        ({"box": (0, 0, 40, 32), "fill": "around"}, "whole picture"),
    ):
        with pytest.raises(PairError, match=match):
            masked_pair(clip, prompt, answer=17, **options)
    with pytest.raises(PairError, match="text and pictures are known"):
        masked_pair(clip, "Q:Peru\nA:", box=BOX, answer=17)
