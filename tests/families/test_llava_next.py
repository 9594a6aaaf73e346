"""LLaVA-NeXT: every point, the view of the whole and the mosaic of tiles."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from families import bench, tiny_llava_next
from vlm_lens import Ablate, All, HookedVLM
from vlm_lens.errors import PointError, PromptError

MODEL = "llava_next"


def test_sizes_must_be_given(vlm):
    inputs = dict(vlm.prompt("<image>", [bench.noise((64, 48))]).inputs)
    del inputs["image_sizes"]
    with pytest.raises(PromptError, match="image_sizes"):
        vlm.run(inputs)


def test_the_last_block_is_not_read(vlm):
    assert vlm.cfg.vision.n_layers_read == 2
    with pytest.raises(PointError, match="the projector reads block 1"):
        vlm.run(
            "<image>", [bench.noise((8, 8))],
            interventions=Ablate("vision.blocks.2.hook_resid_post", at=All()),
        )  # fmt: skip


@pytest.mark.parametrize("size", [(64, 48), (17, 400), (400, 17), (1, 1), (33, 16), (300, 1)])
def test_what_stands_where(vlm, size):
    """Every patch of the text holds the projector's row for it, every other token a newline."""
    prompt = vlm.prompt("Q:<image>\nA:", [Image.new("RGB", size)])
    image = prompt.layout.images[0]
    names = ["hook_merged", "projector.hook_out", "vision.hook_embed"]
    _, cache = vlm.run_with_cache(prompt, names_filter=names)
    merged, projected = cache["hook_merged"][0], cache["projector.hook_out"]
    whole = image.text.grids[0]
    assert torch.equal(merged[list(whole.positions)], projected[0])
    used = set(whole.positions)
    if len(image.text.grids) > 1:
        mosaic = image.text.grids[1]
        used |= set(mosaic.positions)
        rows = {tuple(row.tolist()) for row in projected[1:].flatten(0, 1)}
        assert all(tuple(merged[p].tolist()) in rows for p in mosaic.positions)
    newline = vlm.hf_model.model.image_newline
    for position in set(image.positions) - used:
        assert torch.equal(merged[position], newline)
    assert len(image.vision.sequences) == len(cache["vision.hook_embed"])


def test_tiles_and_mosaic_agree(vlm):
    """A patch of the mosaic and the tile's patch with the same features see the same pixels."""
    prompt = vlm.prompt("<image>", [bench.noise((100, 60))])
    image = prompt.layout.images[0]
    _, cache = vlm.run_with_cache(prompt, names_filter=["hook_merged", "projector.hook_out"])
    mosaic = image.text.grids[1]
    for position in mosaic.positions:
        same = (cache["projector.hook_out"] == cache["hook_merged"][0, position]).all(-1)
        [(row, place)] = same.nonzero().tolist()
        assert image.projector.pixels(place, row) == pytest.approx(mosaic.pixels(position))


def test_patches_that_do_not_fill_a_tile(vlm):
    """Tiles of 18 pixels hold 4 patches of 4: 2 pixels of every tile are seen by none."""
    other = HookedVLM(*tiny_llava_next.with_side(18))
    assert bench.check_geometry(other, (120, 56)) > 12
    mosaic = other.prompt("<image>", [Image.new("RGB", (36, 18))]).layout.images[0].text.grids[1]
    assert [mosaic.pixels(mosaic.patch(0, c))[::2] for c in (0, 3, 4)] == [
        (0, 4),
        (12, 16),
        (18, 22),
    ]
    pictures = [bench.noise(size) for size in ((17, 400), (400, 17), (1, 1))]
    only = ("patch -> pixels -> patch",)
    bench.check_conforms(other, "<image>a<image>b<image>", pictures, only=only)


def test_in_half_precision_what_is_written_back_is_the_same_run(tmp_path):
    """The projector reads a slice, laid out in memory with gaps: kernels round by that."""
    vlm = HookedVLM.from_pretrained(tiny_llava_next.save(tmp_path), dtype=torch.float16)
    pictures = [bench.noise((64, 48))]
    bench.check_conforms(vlm, "<image>a", pictures, only=("writing back restores",))
