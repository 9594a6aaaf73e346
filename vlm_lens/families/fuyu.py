"""Fuyu and Mantis-8B-Fuyu: patches of pixels go straight into a Persimmon text model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from vlm_lens.errors import PromptError
from vlm_lens.families.base import Architecture, Family, in_one_row
from vlm_lens.families.parts.decoders import find_decoder, text_point
from vlm_lens.families.parts.fuyu_processor import CLOSE, IMAGE, OPEN, FuyuReader
from vlm_lens.families.parts.pixels import identity_map, size_entry
from vlm_lens.families.parts.places import picture_places
from vlm_lens.families.parts.selection import by_stretches
from vlm_lens.layout.geometry import PatchGrid, PixelMap
from vlm_lens.layout.layout import ImageLayout, ImageSpace
from vlm_lens.points.config import HookedConfig
from vlm_lens.points.point import Point
from vlm_lens.points.sites import InputSite, OutputSite
from vlm_lens.points.table import PointTable

_TEXT, _PROJECTOR = "model.language_model", "model.vision_embed_tokens"
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
        size, d_vocab = decoder.stack.size, config.text_config.vocab_size
        pixels = config.patch_size**2 * config.num_channels
        points = [
            decoder.embedding_point(),
            Point("projector.hook_in", ("image", "pos", "d_patch"), (1, None, pixels),
                  "What the projector reads: the pixels of one patch",
                  in_one_row(InputSite(_PROJECTOR, keyword="input")), "projector"),
            Point("projector.hook_out", ("image", "pos", "d_model"), (1, None, size.d_model),
                  "Patches in the language model's width",
                  in_one_row(OutputSite(_PROJECTOR)), "projector"),
            text_point("hook_merged", size.d_model, "The language model's input: embeddings "
                       "with picture features in their places",
                       InputSite(_TEXT, keyword="inputs_embeds", index=4)),
            *decoder.stack.points(),
            *decoder.closing_points(d_vocab),
        ]  # fmt: skip
        cfg = HookedConfig(
            model_name=config.name_or_path or type(model).__name__,
            family=self.name,
            d_vocab=d_vocab,
            **asdict(size),
        )
        missing = {"vision.*": _NO_TOWER, **decoder.stack.missing()}
        return Architecture(
            cfg, PointTable(points, missing), decoder, "lm_head", config.image_token_id
        )

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
        self,
        config: Any,
        tensors: Mapping[str, Tensor],
        pictures: Sequence[ImageLayout],
        numbers: Sequence[int],
    ) -> dict[str, Tensor] | None:
        """Their patches."""
        lengths = [len(p.projector.sequences[0][1]) for p in pictures]
        return {"pixel_values": by_stretches(tensors["pixel_values"], lengths, numbers)}

    def image_layouts(
        self,
        model: torch.nn.Module,
        arch: Architecture,
        inputs: Mapping[str, Tensor],
        *,
        processor: Any = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[list[ImageLayout]]:
        """A row of patches is a run of image tokens; one newline stands between two rows."""
        ids = inputs["input_ids"]
        marks = ids == arch.image_token_id
        patches = inputs.get("pixel_values")
        patches = 0 if patches is None else len(patches)
        grids = [list(_grids(mark.nonzero().flatten().tolist())) for mark in marks]
        flat = [g for row in grids for g in row]
        if not patches:
            picture_places(marks, [])
            return [[] for _ in marks]
        if patches != int(marks.sum()) or (sizes is not None and len(flat) != len(sizes)):
            raise PromptError(
                f"There are {patches} patches of pixels, and the prompt holds {int(marks.sum())} "
                f"image tokens of {len(flat)} picture(s). Write one <image> for each picture."
            )
        layouts: list[list[ImageLayout]] = []
        number = first = 0
        for row, found in enumerate(grids):
            layouts.append([])
            for index, (n_rows, n_cols, places) in enumerate(found):
                frame = (n_cols * model.config.patch_size, n_rows * model.config.patch_size)
                pixels = identity_map(frame)
                if sizes is not None and processor is not None:
                    pixels = _pixel_map(processor.image_processor, sizes[number], frame)
                whole = _with_marks(processor, ids[row].tolist(), places)
                mine = tuple(range(first, first + len(places)))
                layouts[-1].append(
                    ImageLayout(
                        index,
                        text=_space(n_rows, n_cols, places, whole, row, pixels),
                        vision=ImageSpace(why_no_grid="Fuyu has no vision tower"),
                        projector=_space(n_rows, n_cols, mine, mine, 0, pixels),
                    )
                )
                number, first = number + 1, first + len(places)
        return layouts


def _grids(positions: list[int]):
    """Rows, columns and positions of each picture among a row's image tokens."""
    runs: list[list[int]] = []
    for before, position in pairwise([-2, *positions]):
        if position == before + 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    start = 0
    for i in range(1, len(runs) + 1):
        if i == len(runs) or runs[i][0] != runs[i - 1][-1] + 2:
            rows = runs[start:i]
            yield len(rows), len(rows[0]), tuple(p for run in rows for p in run)
            start = i


def _with_marks(processor: Any, ids: list[int], places: tuple[int, ...]) -> tuple[int, ...]:
    """The picture's stretch of the text: newlines, and Mantis's marks around it."""
    start, end = places[0], places[-1] + 2
    if isinstance(processor, FuyuReader) and processor.mantis:
        opening, closing = processor.tokenizer.convert_tokens_to_ids([OPEN, CLOSE])
        start -= start > 0 and ids[start - 1] == opening
        end += end < len(ids) and ids[end] == closing
    return tuple(range(start, min(end, len(ids))))


def _pixel_map(image_processor: Any, size: tuple[int, int], frame: tuple[int, int]) -> PixelMap:
    """Larger pictures are made to fit, smaller ones keep their size; padding is below and right."""
    limits = [size_entry(image_processor.size, key) for key in ("width", "height")]
    scale = min(1.0, *(limit / s for limit, s in zip(limits, size, strict=True)))
    resized = [int(s * scale) for s in size]
    return PixelMap(size, frame, (resized[0] / size[0], resized[1] / size[1]))


def _space(
    rows: int, cols: int, places: Sequence[int], whole: tuple[int, ...], row: int, pixels: PixelMap
) -> ImageSpace:
    return ImageSpace((PatchGrid(rows, cols, tuple(places), row, pixels),), ((row, whole),))
