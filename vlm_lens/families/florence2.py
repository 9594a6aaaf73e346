"""Florence-2: an encoder reads a picture and a task, a decoder answers by cross-attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from math import isqrt
from typing import Any

import torch
from PIL import Image

from vlm_lens.errors import PromptError
from vlm_lens.families.by_structure import StructureFamily
from vlm_lens.families.parts.architecture import Architecture
from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.picture import Picture, grid
from vlm_lens.layout.geometry import Spans
from vlm_lens.layout.pictures import ImageSpace
from vlm_lens.points.point import Point
from vlm_lens.points.sites import FeatureMapView, InputSite
from vlm_lens.points.table import PointTable


class Florence2Family(StructureFamily):
    """`Florence2ForConditionalGeneration`."""

    model_types = ("florence2",)

    def architecture(self, model: torch.nn.Module) -> Architecture:
        """All parts by structure; what the tower gives is a map, cell by cell."""
        arch = super().architecture(model)
        self.name = "florence2"
        entering = Point(
            "projector.hook_in", ("image", "pos", "d_vision"),
            (None, None, model.config.vision_config.embed_dim[-1]),
            "What the projector reads: the tower's map, cell by cell",
            InputSite("model.multi_modal_projector", "image_features", view=FeatureMapView()),
            "vision",
        )  # fmt: skip
        points = list(arch.points.values())
        number = next((i for i, p in enumerate(points) if p.name == "projector.hook_out"), 1)
        missing = {k: v for k, v in arch.points.missing.items() if k != entering.name}
        table = PointTable([*points[:number], entering, *points[number:]], missing)
        return replace(arch, points=table, cfg=replace(arch.cfg, family=self.name))

    def process(
        self, processor: Any, texts: list[str], pictures: list[list[Image.Image]], **options: Any
    ) -> Mapping[str, Any]:
        """The processor puts the one picture before the text, where no placeholder may stand.

        Raises:
            PromptError: A text that does not begin with its one picture.
        """
        mark = self.placeholder(processor)
        for text in texts:
            if not text.startswith(mark) or text.count(mark) != 1:
                raise PromptError(
                    "Florence-2 reads one picture, and before the text: write '<image>' once, at "
                    f"the beginning, not {text.replace(mark, '<image>')!r:.80}."
                )
        return super().process(
            processor, [text.removeprefix(mark) for text in texts], pictures, **options
        )

    def pictures(self, batch: PictureBatch) -> list[Picture]:
        """The mean of all cells first, then each cell of the tower's map."""
        n_pictures = self.count_images(batch.inputs)
        counts = [len(places) for places in batch.places if places]
        if len(counts) != n_pictures:
            raise PromptError(
                f"{n_pictures} picture(s) were given to {len(counts)} text(s) with image tokens: "
                "Florence-2 reads one a text."
            )
        found = []
        for number, count in enumerate(counts):
            side = isqrt(count - 1)
            pixels = batch.pixels(number, batch.frame)
            rows, cols = (_spans(batch.config.vision_config, side, n) for n in batch.frame[::-1])
            seen, after = (
                tuple(replace(g, cuts=(rows, cols)) for g in grid(side, side, n, number, pixels))
                for n in (0, 1)
            )
            whole = ((number, tuple(range(side**2))),)
            found.append(
                Picture(
                    count, after, ImageSpace(seen, whole),
                    ImageSpace(after, ((number, tuple(range(count))),)),
                )
            )  # fmt: skip
        return found


def _spans(config: Any, n: int, length: int) -> Spans:
    """Where each cell of the map lies in the frame: nearer to its centre than to another's.

    Convolutions of stride `s`, padding `p` and kernel `k` put the centre of cell `i` at pixel
    `s * i + (k - 1) / 2 - p` of what they read: here at the beginning of the stretch that `i`
    counts off, not in its middle.
    """
    step, centre = 1, 0.5
    sizes = zip(config.patch_stride, config.patch_size, config.patch_padding, strict=True)
    for stride, kernel, padding in sizes:
        centre += step * ((kernel - 1) / 2 - padding)
        step *= stride
    ends = [0.0, *(centre + step * (i + 0.5) for i in range(n - 1)), float(length)]
    return tuple(pairwise(ends))
