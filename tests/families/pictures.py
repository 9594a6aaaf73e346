"""What must hold of every family that takes pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_lens import Ablate, All, HookedVLM, Patches
from vlm_lens.errors import PromptError
from vlm_lens.layout.geometry import PatchGrid
from vlm_lens.layout.layout import ImageLayout
from vlm_lens.testing import conformance


def noise(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def prompts() -> dict[str, tuple[Any, Any]]:
    return {
        "text": ("Q:Greece\nA:", None),
        "one": ("Q:<image>\nA:", [noise((64, 48))]),
        "several": ("<image>a<image>b<image>", [noise((17, 400)), noise((400, 17)), noise((1, 1))]),
        "batch": (
            ["<image>and<image>", "Q:Peru", "longer text:<image>\nA:"],
            [noise((30, 30), "RGBA"), noise((40, 20), "L"), noise((20, 50), "P")],
        ),
    }


def check_conformance(vlm: HookedVLM, which: str, cold: bool = True, only=()) -> None:
    text, images = prompts()[which]
    report = conformance(vlm, text, images, cold=cold and which == "one", only=only)
    assert report.passed, "\n".join(str(f) for f in report.failures)


def check_errors(vlm: HookedVLM) -> None:
    """Image tokens without pixels, too many, too few: an error before the model runs."""
    prompt = vlm.prompt("Q:<image>\nA:", [noise((64, 48))])
    inputs = dict(prompt.inputs)
    pixels = inputs.pop("pixel_values")
    with pytest.raises(PromptError, match="pixel_values"):
        vlm.run(inputs)
    inputs["pixel_values"] = pixels
    token = vlm.architecture.image_token_id
    place = int((inputs["input_ids"][0] == token).nonzero()[0])
    inputs["input_ids"] = inputs["input_ids"].clone()
    inputs["input_ids"][0, place] = 10
    with pytest.raises(PromptError, match="image tokens"):
        vlm.run(inputs)
    with pytest.raises(PromptError, match="placeholder"):
        vlm.prompt("Q:<image><image>", [noise((64, 48))])
    with pytest.raises(PromptError, match="placeholder"):
        vlm.prompt("Q:", [noise((64, 48))])


def check_batch_is_its_rows(vlm: HookedVLM, tolerance: float = 1e-4) -> None:
    """A row of a batch has the logits and the coordinates of the same prompt alone."""
    texts, images = prompts()["batch"]
    batch = vlm.prompt(texts, images)
    logits = vlm.run(batch)
    for row, mine in enumerate([images[:2], None, images[2:]]):
        alone = vlm.prompt(texts[row], mine)
        shift = batch.length - alone.length
        assert batch.layouts[row].start == shift
        torch.testing.assert_close(
            logits[row, -1], vlm.run(alone)[0, -1], rtol=tolerance, atol=tolerance
        )
        for here, there in zip(batch.layouts[row].images, alone.layout.images, strict=True):
            assert here.positions == tuple(p + shift for p in there.positions)
            for a, b in zip(here.text.grids, there.text.grids, strict=True):
                assert a.positions == tuple(p + shift for p in b.positions)
                assert a.pixels_of == b.pixels_of


def _cells(grid: PatchGrid) -> list[int]:
    """Some patches that show enough of the picture."""
    boxes = {p: grid.pixels(p) for p in grid.positions}
    areas = {p: max(b[2] - b[0], 0) * max(b[3] - b[1], 0) for p, b in boxes.items()}
    good = [p for p in grid.positions if areas[p] > 0.7 * max(areas.values())]
    return sorted({good[0], good[len(good) // 2], good[-1], good[len(good) // 3]})


def painted(size: tuple[int, int], box: tuple[float, ...] | None) -> Image.Image:
    """A grey picture with one box in a strong colour, but for its rim, which resizing smears."""
    pixels = np.full((size[1], size[0], 3), 128, dtype=np.uint8)
    if box is None:
        return Image.fromarray(pixels)
    x0, y0, x1, y1 = box
    w, h = (x1 - x0) / 4, (y1 - y0) / 4
    x0, y0, x1, y1 = (round(v) for v in (x0 + w, y0 + h, x1 - w, y1 - h))
    pixels[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = (255, 0, 255)
    return Image.fromarray(pixels)


def _grids(image: ImageLayout) -> Iterator[tuple[str, PatchGrid]]:
    for name, space in (
        ("vision.hook_embed", image.vision),
        ("projector.hook_out", image.projector),
        ("hook_merged", image.text),
    ):
        for grid in space.grids:
            yield name, grid


def check_geometry(
    vlm: HookedVLM, size: tuple[int, int], text: str = "Q:<image>\nA:", which: int = 0,
    others: tuple[tuple[int, int], ...] = (),
) -> int:  # fmt: skip
    """Painting one patch's box changes most the position where the layout says it stands."""

    def pictures(box):
        rest = [painted(s, None) for s in others]
        rest.insert(which, painted(size, box))
        return rest

    points = ["vision.hook_embed", "projector.hook_out", "hook_merged"]

    def read(box):
        prompt = vlm.prompt(text, pictures(box))
        return prompt, vlm.run_with_cache(prompt, names_filter=points)[1]

    prompt, grey = read(None)
    count = 0
    for name, grid in _grids(prompt.layout.images[which]):
        for position in _cells(grid):
            box = grid.pixels(position)
            _, cache = read(box)
            change = (cache[name] - grey[name])[grid.row, list(grid.positions)].norm(dim=-1)
            found = grid.positions[int(change.argmax())]
            assert found == position, (name, grid.rows, grid.cols, position, found, box)
            count += 1
    return count


def check_tower_writes(vlm: HookedVLM) -> None:
    """Ablating the tower's features, and the block that gives them, changes the logits alike."""
    prompt = vlm.prompt(*prompts()["one"])
    plain = vlm.run(prompt)
    read = vlm.cfg.vision.n_layers_read
    for name in (f"vision.blocks.{read - 1}.hook_resid_post", "projector.hook_out"):
        changed = vlm.run(prompt, interventions=Ablate(name, at=All()))
        assert (changed - plain).abs().max() > 1e-3, name


def check_boxes(vlm: HookedVLM, text: str = "<image>b<image>") -> None:
    """What is ablated in a box of the projector's output is zero there in the text, only there."""
    prompt = vlm.prompt(text, [noise((64, 48)), noise((50, 120))])
    for image, box in ((0, (20, 5, 40, 20)), (1, (0, 60, 9, 80)), (1, (0, 0, 50, 120))):
        ablate = Ablate("projector.hook_out", at=Patches(image=image, box=box))
        _, cache = vlm.run_with_cache(prompt, names_filter="hook_merged", interventions=ablate)
        zero = (cache["hook_merged"][0] == 0).all(-1).nonzero().flatten().tolist()
        assert zero == sorted(prompt.layout.image[image].box(*box)), (image, box)
