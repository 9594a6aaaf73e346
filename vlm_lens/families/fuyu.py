"""Fuyu and Mantis-8B-Fuyu: patches of pixels go straight into a Persimmon text model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_lens.errors import PromptError
from vlm_lens.families.parts.architecture import Architecture, assemble, embeddings_of
from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.decoders import find_decoder
from vlm_lens.families.parts.family import Family
from vlm_lens.families.parts.fuyu_processor import CLOSE, OPEN, FuyuReader
from vlm_lens.families.parts.picture import Brackets, Picture, grid, packed_space, runs_of
from vlm_lens.families.parts.pixels import size_entry
from vlm_lens.families.parts.selection import by_stretches
from vlm_lens.families.parts.stack import in_one_row
from vlm_lens.layout.geometry import PixelMap
from vlm_lens.layout.pictures import ImageLayout, ImageSpace
from vlm_lens.points.point import Point
from vlm_lens.points.sites import InputSite, OutputSite
from vlm_lens.tokens import IMAGE

_TEXT, _PROJECTOR = "model.language_model", "model.vision_embed_tokens"
_NOWHERE = ImageSpace(why_no_grid="Fuyu has no vision tower")
_NO_TOWER = "it has no vision tower: one linear layer makes an embedding of each patch's pixels."


class FuyuFamily(Family):
    """`FuyuForCausalLM`; a checkpoint of `MFuyuForCausalLM` is read in Mantis's prompt form."""

    name = "fuyu"
    model_types = ("fuyu",)
    takes_images = True
    not_separable = ""

    def architecture(self, model: torch.nn.Module) -> Architecture:
        """The parts of a Fuyu."""
        config = model.config
        decoder = find_decoder(config.text_config, _TEXT)
        width, pixels = decoder.stack.size.d_model, config.patch_size**2 * config.num_channels
        before = [
            Point("projector.hook_in", ("image", "pos", "d_patch"), (1, None, pixels),
                  "What the projector reads: the pixels of one patch",
                  in_one_row(InputSite(_PROJECTOR, keyword="input")), "projector"),
            Point("projector.hook_out", ("image", "pos", "d_model"), (1, None, width),
                  "Patches in the language model's width",
                  in_one_row(OutputSite(_PROJECTOR)), "projector"),
        ]  # fmt: skip
        return assemble(
            model, self.name, decoder, embeddings_of(_TEXT), before=before,
            missing={"vision.*": _NO_TOWER}, image_token_id=config.image_token_id,
        )  # fmt: skip

    def load_processor(self, config: Any, where: str, **hub: Any) -> Any:
        """Our own: transformers' reads one picture a text, in Fuyu's form only."""
        from transformers import FuyuProcessor

        fuyu = FuyuProcessor.from_pretrained(where, **hub)
        mantis = "MFuyuForCausalLM" in (config.architectures or ())
        return FuyuReader(fuyu.image_processor, fuyu.tokenizer, mantis=mantis)

    def placeholder(self, processor: Any) -> str:
        """The processor splits texts at `<image>` itself."""
        return IMAGE

    def tokenize(self, processor: Any, texts: list[str], **options: Any) -> Mapping[str, Any]:
        """Mantis reads text without pictures without `<s>`."""
        if isinstance(processor, FuyuReader) and processor.mantis:
            return processor(texts)
        return super().tokenize(processor, texts, **options)

    def packs_pictures(self, config: Any) -> bool:
        """The patches of all pictures are one list."""
        return True

    def select_pictures(
        self, tensors: Mapping[str, Tensor], pictures: Sequence[ImageLayout], numbers: Sequence[int]
    ) -> dict[str, Tensor] | None:
        """Their patches."""
        lengths = [len(p.projector.sequences[0][1]) for p in pictures]
        return {"pixel_values": by_stretches(tensors["pixel_values"], lengths, numbers)}

    def pictures(self, batch: PictureBatch) -> list[Picture]:
        """A row of patches is a run of image tokens; one newline stands between two rows."""
        found = [rows for places in batch.places for rows in _by_picture(places)]
        patches, n_tokens = len(batch.inputs["pixel_values"]), sum(map(len, batch.places))
        if patches != n_tokens or (batch.sizes is not None and len(found) != len(batch.sizes)):
            raise PromptError(
                f"There are {patches} patches of pixels, and the prompt holds {n_tokens} image "
                f"tokens of {len(found)} picture(s). Write one <image> for each picture."
            )
        side, first, pictures = batch.config.patch_size, 0, []
        for number, runs in enumerate(found):
            rows, cols = len(runs), len(runs[0])
            pixels = batch.pixels(number, (cols * side, rows * side), _pixel_map)
            places = range(first, first := first + rows * cols)
            projector = packed_space(rows, cols, places, pixels)
            text = grid(rows, cols, 0, 0, pixels)
            pictures.append(Picture(rows * cols, text, _NOWHERE, projector))
        return pictures

    def brackets(self, batch: PictureBatch) -> Brackets:
        """The newline after a picture's last row belongs to it, and so do Mantis's marks."""
        opening, closing = [], []
        if isinstance(batch.processor, FuyuReader) and batch.processor.mantis:
            marks = batch.processor.tokenizer.convert_tokens_to_ids([OPEN, CLOSE])
            opening, closing = [marks[0]], [marks[1]]
        for ids, places in zip(batch.ids, batch.places, strict=True):
            closing += [ids[runs[-1][-1] + 1] for runs in _by_picture(places) if len(runs) > 1]
        return opening, closing


def _by_picture(places: Sequence[int]) -> Iterator[list[list[int]]]:
    """The rows of patches of each picture: rows of one picture stand one token apart."""
    picture: list[list[int]] = []
    for run in runs_of(places):
        if picture and run[0] != picture[-1][-1] + 2:
            yield picture
            picture = []
        picture.append(run)
    if picture:
        yield picture


def _pixel_map(image_processor: Any, size: tuple[int, int], frame: tuple[int, int]) -> PixelMap:
    """Larger pictures are made to fit, smaller ones keep their size; padding is below and right."""
    limits = [size_entry(image_processor.size, key) for key in ("width", "height")]
    scale = min(1.0, *(limit / s for limit, s in zip(limits, size, strict=True)))
    resized = [int(s * scale) for s in size]
    return PixelMap(size, frame, (resized[0] / size[0], resized[1] / size[1]))
