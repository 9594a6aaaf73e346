"""Patches under a mask and rings around them, against counting in a fine raster of the picture."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from vlm_lens import Ablate, All, AttentionKnockout, Generated, Images, Last, Patches, Text
from vlm_lens.errors import PositionError
from vlm_lens.layout.geometry import PatchGrid, PixelMap

MAPS = {
    "resized": PixelMap((48, 32), (60, 60), (60 / 48, 60 / 32)),
    "cropped": PixelMap((48, 32), (60, 60), (2.0, 2.0), (-18.0, -2.0)),
    "padded": PixelMap((48, 32), (60, 60), (1.25, 1.25), (0.0, 10.0)),
}
FINE = 60  # raster points a pixel, a multiple of what the maps divide pixels into


def blob(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A mask of a few boxes, `[height, width]`."""
    width, height = size
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), bool)
    for _ in range(3):
        x, y = rng.integers(0, width - 3), rng.integers(0, height - 3)
        mask[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = True
    return mask


def counted(grid: PatchGrid, mask: np.ndarray) -> np.ndarray:
    """Shares by looking up the mask at a fine raster of points of each patch."""
    (sx, sy), (ox, oy) = grid.pixels_of.scale, grid.pixels_of.offset
    rows, cols = grid.spans
    shares = np.zeros((grid.rows, grid.cols))
    for r, (y0, y1) in enumerate(rows):
        for c, (x0, x1) in enumerate(cols):
            raster = (np.arange(FINE) + 0.5) / FINE
            ys = np.floor((y0 + (y1 - y0) * raster - oy) / sy).astype(int)
            xs = np.floor((x0 + (x1 - x0) * raster - ox) / sx).astype(int)
            good_y, good_x = ((v >= 0) & (v < n) for v, n in zip((ys, xs), mask.shape, strict=True))
            found = np.zeros((FINE, FINE), bool)
            found[np.ix_(good_y, good_x)] = mask[np.ix_(ys[good_y], xs[good_x])]
            shares[r, c] = found.mean()
    return shares


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("cuts", [None, (((0, 13), (13, 60)), ((0, 31), (31, 50), (50, 60)))])
def test_shares_are_what_a_fine_raster_counts(name, cuts):
    sizes = (4, 5) if cuts is None else (2, 3)
    grid = PatchGrid(*sizes, tuple(range(sizes[0] * sizes[1])), 0, MAPS[name], cuts)
    for seed in range(4):
        mask = blob((48, 32), seed)
        assert np.abs(grid.shares(mask) - counted(grid, mask)).max() < 0.03
    everything = grid.shares(np.ones((32, 48), bool))
    in_picture = [(box[2] - box[0]) * (box[3] - box[1]) for box in map(grid.pixels, grid.positions)]
    (sx, sy), spans = MAPS[name].scale, grid.spans
    areas = [(y1 - y0) / sy * (x1 - x0) / sx for y0, y1 in spans[0] for x0, x1 in spans[1]]
    assert np.allclose(everything.ravel(), np.divide(in_picture, areas))


def test_a_mask_means_the_patches_of_which_it_covers_enough(vlm):
    size = (64, 32)
    layout = vlm.prompt("Q:<image>\nA:", [tiny.noise_picture(0, size)]).layout
    grid = layout.image[0].grid
    mask = blob(size, 1)
    shares = grid.shares(mask).ravel()
    for least in (0.0, 0.1, 0.2):
        chosen = Patches(mask=mask, min_share=least).resolve(layout)
        wanted = (shares >= least) & (shares > 0)
        assert chosen == [(0, p) for p, w in zip(grid.positions, wanted, strict=True) if w]
    # the same in tower and projector
    columns = [grid.positions.index(p) for _, p in Patches(mask=mask).resolve(layout)]
    for space in ("vision", "projector"):
        own = layout.image[0].space(space).grid()
        found = Patches(mask=mask).resolve(layout, space)
        assert found == [(own.row, own.positions[c]) for c in columns]


def test_masks_of_every_form_are_one_value(clip, tmp_path):
    mask = blob((32, 32))
    bytes_ = mask.astype(np.uint8) * 255
    forms = [mask, mask.tolist(), torch.from_numpy(mask), bytes_, mask.astype(float)]
    forms += [Image.fromarray(mask), Image.fromarray(bytes_)]
    made = [Patches(mask=form) for form in forms]
    assert len(set(made)) == 1
    edit = Ablate("hook_merged", at=Patches(mask=mask, ring=1, min_share=0.25))
    edit.save(tmp_path / "edit")
    assert Ablate.load(tmp_path / "edit") == edit
    assert Patches(mask=mask) != Patches(mask=~mask)


def test_rings_are_neighbours_in_the_grid(clip):
    layout = clip.prompt("Q:<image>\nA:", [tiny.noise_picture()]).layout
    grid = layout.image[0].grid
    for cell, ring in (((0, 0), 1), ((1, 2), 1), ((3, 3), 2), ((1, 1), 0), ((0, 3), 3)):
        found = Patches(rows=cell[0], cols=cell[1], ring=ring).resolve(layout)
        near = [
            (r, c)
            for r in range(4)
            for c in range(4)
            if max(abs(r - cell[0]), abs(c - cell[1])) <= ring
        ]
        assert found == [(0, grid.patch(r, c)) for r, c in near]
    box = grid.pixels(grid.patch(1, 1))
    assert Patches(box=box, ring=1) != Patches(box=box)
    assert len(Patches(box=box, ring=1).resolve(layout)) == 9


def test_a_ring_goes_on_in_the_next_tile_and_not_in_the_overview():
    """Two tiles side by side, cut from the picture at twice the scale of the view of the whole."""
    whole = PatchGrid(2, 4, tuple(range(8)), 0, PixelMap((16, 8), (16, 8), (1.0, 1.0)))
    left = PatchGrid(4, 4, tuple(range(8, 24)), 0, PixelMap((16, 8), (16, 16), (2.0, 2.0)))
    right = PatchGrid(
        4, 4, tuple(range(24, 40)), 0, PixelMap((16, 8), (16, 16), (2.0, 2.0), (-16.0, 0.0))
    )
    from vlm_lens.layout.masks import with_rings

    grids, edge = (whole, left, right), left.patch(1, 3)
    found = with_rings(grids, [(0, edge)], 1)
    assert sorted(p for _, p in found) == sorted(
        [left.patch(r, c) for r in (0, 1, 2) for c in (2, 3)]
        + [right.patch(r, 0) for r in (0, 1, 2)]
    )
    corner = with_rings(grids, [(0, whole.patch(0, 0))], 1)
    assert sorted(p for _, p in corner) == [whole.patch(r, c) for r in (0, 1) for c in (0, 1)]
    both = with_rings(grids, [(0, edge), (0, whole.patch(0, 0))], 1)
    assert both == corner + found


def test_sums_and_complements(vlm):
    layout = vlm.prompt("Q:<image>\nA:", [tiny.noise_picture()]).layout
    pictures = set(layout.image[0].positions)
    everything = list(range(len(layout)))
    assert [p for _, p in (~Images()).resolve(layout)] == [
        p for p in everything if p not in pictures
    ]
    assert (~Images()).resolve(layout) == Text(special=True).resolve(layout)
    assert (Images() + Last()).resolve(layout) == [
        *((0, p) for p in sorted(pictures)), (0, layout.last)
    ]  # fmt: skip
    assert (All() - Patches(rows=0)).resolve(layout) == (~Patches(rows=0)).resolve(layout)
    assert (Last() + Last()).resolve(layout) == Last().resolve(layout)
    both = Last() + Generated()
    assert both.at_generated and both.in_prompt.resolve(layout) == Last().resolve(layout)
    for wrong in (lambda: ~both, lambda: All() - Generated(), lambda: Generated() - Last()):
        with pytest.raises(PositionError, match="no part of a prompt"):
            wrong()
    grid = layout.image[0].vision.grid()
    others = (~Patches(rows=0)).resolve(layout, "vision")
    assert set(others) == set(All().resolve(layout, "vision")) - {
        (grid.row, grid.patch(0, c)) for c in range(grid.cols)
    }
    assert AttentionKnockout(both, keys=~Last()).queries == both


def test_bad_masks_are_refused(clip):
    layout = clip.prompt("Q:<image>\nA:", [tiny.noise_picture()]).layout
    good = np.ones((32, 32), bool)
    with pytest.raises(PositionError, match="mask is 16 x 32 pixels and the picture 32 x 32"):
        Patches(mask=good[:, :16]).resolve(layout)
    with pytest.raises(PositionError, match="at most 1.6% of one"):
        one = np.zeros((32, 32), bool)
        one[0, 0] = True
        Patches(mask=one, min_share=0.5).resolve(layout)
    wide = clip.prompt("Q:<image>\nA:", [tiny.noise_picture(0, (96, 32))]).layout
    with pytest.raises(PositionError, match="no patch"):
        Patches(mask=np.pad(good, ((0, 0), (64, 0))) & (np.arange(96) > 90)).resolve(wide)
    for wrong, message in [
        ({"mask": ~good}, "no pixel inside"),
        ({"mask": np.ones((2, 2, 3), bool)}, r"array \[height, width\]"),
        ({"mask": "mask.png"}, r"array \[height, width\]"),
        ({"mask": [[1, 0], [1]]}, r"array \[height, width\]"),
        ({"mask": np.random.default_rng(0).random((4, 4))}, "Cut it first"),
        ({"mask": Image.new("RGB", (4, 4))}, "mode '1' or 'L'"),
        ({"mask": good, "rows": 1}, "only one"),
        ({"mask": good, "min_share": 1.5}, "from 0 to 1"),
        ({"min_share": 0.5}, "give mask="),
        ({"rows": 1, "ring": -1}, "0 or more"),
        ({"rows": 1, "ring": 0.5}, "whole number"),
    ]:
        with pytest.raises(PositionError, match=message):
            Patches(**wrong)
