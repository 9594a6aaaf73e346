"""PaliGemma: a SigLIP tower, one linear projector, a Gemma that reads the prompt both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from vlm_lens.families.parts.architecture import Architecture
from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.picture import Picture, one_frame
from vlm_lens.families.parts.pixels import covered
from vlm_lens.families.parts.projected import ProjectedFamily
from vlm_lens.points.table import PointTable
from vlm_lens.tokens import tokenizer_of


class PaliGemmaFamily(ProjectedFamily):
    """`PaliGemmaForConditionalGeneration`.

    The processor writes `<bos>` after the last picture and a line break at the end; texts without
    pictures are written alike, and read both ways alike.
    """

    name = "paligemma"
    model_types = ("paligemma",)
    reads_normed = True

    def architecture(self, model: torch.nn.Module) -> Architecture:
        """The parts of the model; a prompt's positions see each other, whichever comes first."""
        found = super().architecture(model)
        points = (
            replace(point, both_ways=True) if point.on_demand and point.space == "text" else point
            for point in found.points.values()
        )
        return replace(found, points=PointTable(points, found.points.missing))

    def tokenize(self, processor: Any, texts: list[str], **options: Any) -> Mapping[str, Any]:
        """Tokens as the processor would write them for a prompt with pictures."""
        tokenizer = tokenizer_of(processor)
        written = [f"{tokenizer.bos_token or ''}{text}\n" for text in texts]
        return tokenizer(written, return_token_type_ids=True, **options)

    def process(
        self, processor: Any, texts: list[str], pictures: list[list[Image.Image]], **options: Any
    ) -> Mapping[str, Any]:
        """Runs the processor row by row: in a batch it garbles texts without pictures."""
        padding = {k: options.pop(k) for k in ("padding", "padding_side") if k in options}
        rows, pixels = [], []
        for text, images in zip(texts, pictures, strict=True):
            if images:
                row = dict(processor(text=[text], images=images, **options))
                pixels.append(row.pop("pixel_values"))
                row.pop("labels", None)
            else:
                row = dict(self.tokenize(processor, [text], **options))
            rows.append({name: values[0].tolist() for name, values in row.items()})
        encoded = {name: [row[name] for row in rows] for name in rows[0]}
        if padding:
            padded = tokenizer_of(processor).pad(encoded, return_tensors="pt", **padding)
        else:
            padded = {name: torch.tensor(values) for name, values in encoded.items()}
        return {**padded, "pixel_values": torch.cat(pixels)}

    def pictures(self, batch: PictureBatch) -> list[Picture]:
        """Every picture is resized to one frame; each patch is one position of the text."""
        patch = batch.vision.patch_size
        rows, cols = batch.frame[1] // patch, batch.frame[0] // patch
        return [
            one_frame(n, rows, cols, covered(batch.pixels(n, batch.frame), rows, cols, patch))
            for n in range(self.count_images(batch.inputs))
        ]
