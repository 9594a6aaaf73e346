"""LLaVA-OneVision: every point, tiles and an interpolated mosaic, several pictures in a text."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from families import bench, tiny_llava_onevision, tiny_parts
from vlm_lens import HookedVLM
from vlm_lens.errors import PositionError, PromptError

MODEL = "llava_onevision"


def test_sizes_must_be_given(vlm):
    inputs = dict(vlm.prompt("<image>", [bench.noise((64, 48))]).inputs)
    del inputs["image_sizes"]
    with pytest.raises(PromptError, match="image_sizes"):
        vlm.run(inputs)


def test_geometry_without_interpolation(vlm):
    model = tiny_parts.finish(tiny_llava_onevision.model(9))
    other = HookedVLM(model, tiny_llava_onevision.processor(9))
    assert bench.check_geometry(other, (96, 96)) > 12
    bench.check_boxes(other)
    mosaic = other.prompt("<image>", [Image.new("RGB", (48, 48))]).layout.images[0].text.grids[1]
    left_to_right = [mosaic.pixels(mosaic.patch(0, c))[::2] for c in (0, 2, 3, 8)]
    assert left_to_right == [(0, 5), (10, 15), (16, 21), (42, 47)]
    with pytest.raises(PositionError):
        mosaic.box(15.2, 0, 15.8, 5)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("size", [(64, 48), (17, 400), (400, 17), (1, 1)])
def test_what_stands_where(vlm, size, n):
    """Patches of the whole are the projector's rows; what is no patch is a newline."""
    prompt = vlm.prompt("<image>" * n, [Image.new("RGB", size)] * n)
    _, cache = vlm.run_with_cache(prompt, names_filter=["hook_merged", "projector.hook_out"])
    merged, projected = cache["hook_merged"][0], cache["projector.hook_out"]
    newline = vlm.hf_model.model.image_newline
    for image in prompt.layout.images:
        whole = image.text.grids[0]
        row = image.projector.grids[0].row
        assert torch.equal(merged[list(whole.positions)], projected[row])
        patches = {p for grid in image.text.grids for p in grid.positions}
        rest = set(image.positions) - patches
        assert all(torch.equal(merged[p], newline) for p in rest)
        n_rows = image.text.grids[1].rows if len(image.text.grids) > 1 else 1
        assert len(rest) == n_rows
        assert not any(torch.equal(merged[p], newline) for p in patches)


def test_several_pictures_are_not_cut_into_tiles(vlm):
    """They are padded to squares."""
    pictures = [Image.new("RGB", (120, 52)), Image.new("RGB", (64, 120))]
    prompt = vlm.prompt("a<image>b<image>", pictures)
    assert [len(i.text.grids) for i in prompt.layout.images] == [1, 1]
