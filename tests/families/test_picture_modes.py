"""Pictures of every mode reach every family's processor as they are given."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from families.every import FAMILIES


def pictures() -> dict[str, Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (40, 56, 4)).astype("uint8")
    rgba = Image.fromarray(values)
    rgb = rgba.convert("RGB")
    palette = rgb.quantize(8)
    palette.info["transparency"] = 2
    return {
        "RGB": rgb, "RGBA": rgba, "LA": rgba.convert("LA"), "transparent P": palette,
        "P": rgb.quantize(16), "1": rgb.convert("1"), "L": rgb.convert("L"),
        "CMYK": rgb.convert("CMYK"), "F": Image.fromarray(values[..., 0].astype("float32")),
        "I;16": Image.fromarray(values[..., 0].astype("uint16")),
    }  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_pixels_are_the_processors_own(name, made):
    vlm = made(name)
    for mode, picture in pictures().items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = vlm.prompt("<image>What?", picture).inputs["pixel_values"]
        if name == "fuyu":
            ground = Image.new("RGBA", picture.size, "white")  # as the others' processors do
            ground.alpha_composite(picture.convert("RGBA"))
            rgb = (
                ground.convert("RGB") if "A" in mode or "trans" in mode else picture.convert("RGB")
            )
            assert torch.equal(found, reader_patches(vlm.processor.image_processor, rgb))
        elif name == "idefics2":  # whose processor converts before its image processor would
            theirs = vlm.processor(text="<image>What?", images=[[picture]], return_tensors="pt")
            assert torch.equal(found, theirs["pixel_values"])
            lost = any("drops transparency" in str(w.message) for w in said)
            assert lost == (mode in ("RGBA", "LA", "transparent P"))
        else:
            theirs = vlm.processor.image_processor(picture, return_tensors="pt")["pixel_values"]
            assert torch.equal(found.flatten(), theirs.flatten()), mode
            assert not any("drops transparency" in str(w.message) for w in said)


def reader_patches(image_processor, picture: Image.Image) -> torch.Tensor:
    """Fuyu's patches of the part that is no padding, cut by hand."""
    found = image_processor(picture, return_tensors="pt")
    image = torch.as_tensor(found["images"][0][0])
    side = image_processor.patch_size["height"]
    rows, cols = -(-picture.height // side), -(-picture.width // side)
    return torch.stack([
        image[:, r * side : (r + 1) * side, c * side : (c + 1) * side].permute(1, 2, 0).flatten()
        for r in range(rows) for c in range(cols)
    ])  # fmt: skip
