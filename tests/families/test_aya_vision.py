"""Aya Vision: every point, tiles and the whole, merged patches."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from families import pictures, tiny_aya_vision
from vlm_lens import HookedVLM
from vlm_lens.errors import PointError


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return HookedVLM.from_pretrained(tiny_aya_vision.save(tmp_path_factory.mktemp("aya")))


@pytest.mark.parametrize("which", pictures.prompts())
def test_conformance(vlm, which):
    pictures.check_conformance(vlm, which)


def test_errors(vlm):
    pictures.check_errors(vlm)


def test_batch(vlm):
    pictures.check_batch_is_its_rows(vlm)


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (120, 52), (60, 130)])
def test_geometry(vlm, size):
    assert pictures.check_geometry(vlm, size) >= 12


def test_geometry_of_the_second_picture(vlm):
    text = "a<image>b<image>"
    assert pictures.check_geometry(vlm, (64, 120), text, 1, others=((120, 52),)) > 12


def test_writes(vlm):
    pictures.check_tower_writes(vlm)
    pictures.check_boxes(vlm)


def test_what_stands_where(vlm):
    prompt = vlm.prompt("a<image>b<image>", [Image.new("RGB", (48, 32)), Image.new("RGB", (9, 9))])
    tiled, single = prompt.layout.images
    strings = "".join(prompt.layout.strings[p] for p in tiled.positions)
    four = "<|IMG_PATCH|>" * 4
    tiles = "".join(f"TILE_{i}{four}" for i in range(1, 7))
    assert strings == f"<|START_OF_IMG|>{tiles}TILE_GLOBAL{four}<|END_OF_IMG|>"
    assert [(g.rows, g.cols) for g in tiled.text.grids] == [(2, 2), (4, 6)]
    mosaic = tiled.text.grids[1]
    assert mosaic.pixels(mosaic.patch(3, 5)) == (40, 24, 48, 32)
    assert tiled.vision.box(40, 24, 48, 32)[-4:] == [(5, p) for p in (10, 11, 14, 15)]
    assert [(g.rows, g.cols) for g in single.text.grids] == [(2, 2)]
    assert single.vision.sequences == ((7, tuple(range(16))),)

    _, cache = vlm.run_with_cache(prompt, names_filter=["hook_merged", "projector.hook_out"])
    rows = cache["projector.hook_out"]
    assert rows.shape == (8, 4, 32)
    assert torch.equal(cache["hook_merged"][0, list(tiled.text.grids[0].positions)], rows[6])
    last = tiled.projector.grids[-1].row if tiled.projector.grids[-1].row != 6 else 5
    assert torch.equal(cache["hook_merged"][0, mosaic.patch(3, 5)], rows[last, 3])


def test_parallel_blocks_have_no_middle(vlm):
    with pytest.raises(PointError, match="attention and MLP read the same norm"):
        vlm.points("blocks.0.hook_resid_mid")
    assert vlm.hf_model.config.text_config.logit_scale != 1
    assert vlm.architecture.decoder.logit_scale == 1
