"""Aya Vision: every point, tiles and the whole, merged patches."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from vlm_lens.errors import PointError

MODEL = "aya_vision"


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
