"""Chameleon: pictures become tokens of the vocabulary, by the nearest codes of a VQ model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlm_lens.families.base import Architecture, Family
from vlm_lens.families.parts.decoders import (
    DECODERS,
    Decoder,
    DecoderNames,
    find_decoder,
    text_point,
)
from vlm_lens.families.parts.pixels import identity_map, resize_and_crop_map
from vlm_lens.families.parts.places import picture_places
from vlm_lens.families.parts.towers import image_point
from vlm_lens.layout.geometry import PatchGrid
from vlm_lens.layout.layout import ImageLayout, ImageSpace
from vlm_lens.points.config import HookedConfig
from vlm_lens.points.sites import FeatureMapView, InputSite, MidSite, OutputSite
from vlm_lens.points.table import PointTable

_TEXT = "model"
_MISSING = {
    "hook_embed": "the same layer embeds the text and the codes of the pictures, one after the "
    "other; use hook_merged.",
    "vision.blocks.*": "its pictures go through the convolutions of a VQ model; use "
    "vision.hook_out.",
    "projector.*": "it has no projector: a picture is made of tokens of the vocabulary.",
}
_UNNORMED = "it normalises what attention and MLP give, not what they read."


class ChameleonFamily(Family):
    """`ChameleonForConditionalGeneration`."""

    name = "chameleon"
    model_types = ("chameleon",)
    takes_images = True
    not_separable = (
        "its pictures become tokens by the nearest code, and another order of the same sums could "
        "choose another code"
    )

    def architecture(self, model: torch.nn.Module) -> Architecture:
        """The parts of a Chameleon."""
        config, codes = model.config, model.config.vq_config
        decoder = _decoder(model)
        size = decoder.stack.size
        points = [
            image_point("vision.hook_out", codes.embed_dim, "What the VQ model makes of each "
                        "patch; the nearest code is the patch's token",
                        OutputSite("model.vqmodel.quant_conv", view=FeatureMapView())),
            text_point("hook_merged", size.d_model, "The language model's input: embeddings of "
                       "the text and of the pictures' tokens",
                       InputSite(f"{decoder.stack.path}.0")),
            *decoder.stack.points(),
            *decoder.closing_points(config.vocab_size),
        ]  # fmt: skip
        cfg = HookedConfig(
            model_name=config.name_or_path or type(model).__name__,
            family=self.name,
            d_vocab=config.vocab_size,
            **asdict(size),
        )
        missing = {**_MISSING, **decoder.stack.missing()}
        image_token = model.model.vocabulary_mapping.image_token_id
        return Architecture(cfg, PointTable(points, missing), decoder, "lm_head", image_token)

    def placeholder(self, processor: Any) -> str:
        """The processor's image token; it writes the tokens of start and end itself."""
        return processor.image_token

    def process(
        self, processor: Any, texts: list[str], pictures: list[list[Image.Image]], **options: Any
    ) -> Mapping[str, Any]:
        """The text as it stands, without the separator that a chat would have after it."""
        return super().process(
            processor, texts, pictures, return_for_text_completion=True, **options
        )

    def count_images(self, inputs: Mapping[str, Tensor]) -> int:
        """One row of `pixel_values` a picture."""
        pixels = inputs.get("pixel_values")
        return 0 if pixels is None else len(pixels)

    def image_layouts(
        self,
        model: torch.nn.Module,
        arch: Architecture,
        inputs: Mapping[str, Tensor],
        *,
        processor: Any = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[list[ImageLayout]]:
        """Every picture has the same square of tokens."""
        ids = inputs["input_ids"]
        marks = ids == arch.image_token_id
        n_images = self.count_images(inputs)
        if not n_images:
            return [[] for _ in picture_places(marks, [])]
        height, width = inputs["pixel_values"].shape[-2:]
        patch = 2 ** (len(model.config.vq_config.channel_multiplier) - 1)
        rows, cols = height // patch, width // patch
        brackets = _brackets(processor)
        layouts: list[list[ImageLayout]] = []
        number = 0
        for row, pictures in enumerate(picture_places(marks, [rows * cols] * n_images)):
            layouts.append([])
            for index, places in enumerate(pictures):
                pixels = identity_map((width, height))
                if sizes is not None and processor is not None:
                    pixels = resize_and_crop_map(
                        processor.image_processor, sizes[number], (width, height)
                    )
                around = [p for p in (places[0] - 1, places[-1] + 1) if 0 <= p < ids.shape[1]]
                around = [p for p in around if int(ids[row, p]) in brackets]
                whole = tuple(sorted((*places, *around)))
                own = tuple(range(rows * cols))
                text = PatchGrid(rows, cols, places, row, pixels)
                tower = PatchGrid(rows, cols, own, number, pixels)
                layouts[-1].append(
                    ImageLayout(
                        index,
                        text=ImageSpace((text,), ((row, whole),)),
                        vision=ImageSpace((tower,), ((number, own),)),
                        projector=ImageSpace(why_no_grid="Chameleon has no projector"),
                    )
                )
                number += 1
        return layouts


def _decoder(model: torch.nn.Module) -> Decoder:
    names = DECODERS["llama"]
    if model.config.swin_norm:
        parts = replace(names.parts, attn_out="input_layernorm", mlp_out="post_attention_layernorm")
        lacks = dict.fromkeys(("ln1.hook_normalized", "ln2.hook_normalized"), _UNNORMED)
        names = DecoderNames(parts, lacks=lacks, sites=lambda size: {"hook_resid_mid": _mid})
    decoder = find_decoder(model.config, _TEXT, names)
    return replace(decoder, barred=tuple(model.model.vocabulary_mapping.image_tokens))


def _mid(block: str) -> MidSite:
    branch = OutputSite(f"{block}.post_attention_layernorm")
    return MidSite(InputSite(f"{block}.mlp", keyword="x"), branch, OutputSite(block))


def _brackets(processor: Any) -> tuple[int, ...]:
    """The tokens around a picture; they belong to it, but to no patch."""
    if processor is None:
        return ()
    return processor.image_start_token_id, processor.image_end_token_id
