"""Chameleon: pictures become tokens of the vocabulary, by the nearest codes of a VQ model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from vlm_lens.families.parts.architecture import Architecture, assemble
from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.decoders import DECODERS, Decoder, DecoderNames, find_decoder
from vlm_lens.families.parts.family import Family
from vlm_lens.families.parts.picture import Brackets, Picture, one_frame
from vlm_lens.families.parts.towers import image_point
from vlm_lens.layout.pictures import ImageSpace
from vlm_lens.points.sites import FeatureMapView, InputSite, MidSite, OutputSite

_TEXT = "model"
_MISSING = {
    "hook_embed": "the same layer embeds the text and the codes of the pictures, one after the "
    "other; use hook_merged.",
    "vision.blocks.*": "its pictures go through the convolutions of a VQ model; use "
    "vision.hook_out.",
    "projector.*": "it has no projector: a picture is made of tokens of the vocabulary.",
}
_NO_PROJECTOR = ImageSpace(why_no_grid="Chameleon has no projector")
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
        decoder = _decoder(model)
        codes = image_point(
            "vision.hook_out", model.config.vq_config.embed_dim, "What the VQ model makes of each "
            "patch; the nearest code is the patch's token",
            OutputSite("model.vqmodel.quant_conv", view=FeatureMapView()),
        )  # fmt: skip
        return assemble(
            model, self.name, decoder, InputSite(f"{decoder.stack.path}.0"), before=[codes],
            merged_doc="The language model's input: embeddings of the text and of the pictures' "
            "tokens",
            missing=_MISSING, image_token_id=model.model.vocabulary_mapping.image_token_id,
        )  # fmt: skip

    def process(
        self, processor: Any, texts: list[str], pictures: list[list[Image.Image]], **options: Any
    ) -> Mapping[str, Any]:
        """The text as it stands, without the separator that a chat would have after it."""
        return super().process(
            processor, texts, pictures, return_for_text_completion=True, **options
        )

    def pictures(self, batch: PictureBatch) -> list[Picture]:
        """Every picture has the same square of tokens."""
        patch = 2 ** (len(batch.config.vq_config.channel_multiplier) - 1)
        rows, cols = batch.frame[1] // patch, batch.frame[0] // patch
        frames = [
            one_frame(number, rows, cols, batch.pixels(number, batch.frame))
            for number in range(self.count_images(batch.inputs))
        ]
        return [Picture(f.n_tokens, f.vision.grids, f.vision, _NO_PROJECTOR) for f in frames]

    def brackets(self, batch: PictureBatch) -> Brackets:
        """The tokens of a picture's start and end."""
        if batch.processor is None:
            return (), ()
        return (batch.processor.image_start_token_id,), (batch.processor.image_end_token_id,)


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
