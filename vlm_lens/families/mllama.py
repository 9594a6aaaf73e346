"""Mllama (Llama 3.2 Vision): text attends to pictures by cross-attention, in some of its blocks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vlm_lens.errors import PromptError
from vlm_lens.families.parts.architecture import Architecture, assemble
from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.decoders import DECODERS, Decoder, find_decoder
from vlm_lens.families.parts.family import Family
from vlm_lens.families.parts.picture import Picture
from vlm_lens.families.parts.pixels import identity_map
from vlm_lens.families.parts.stack import BlockParts, SiteMaker, Stack
from vlm_lens.families.parts.towers import image_point
from vlm_lens.layout.geometry import PatchGrid, PixelMap
from vlm_lens.layout.pictures import ImageSpace
from vlm_lens.points.config import StackConfig, VisionConfig
from vlm_lens.points.point import Point
from vlm_lens.points.sites import (
    HeadView,
    InputSite,
    MidSite,
    OutputSite,
    RowsView,
    ScaleView,
    submodule,
)
from vlm_lens.tokens import tokenizer_of

_TOWER, _PROJECTOR, _TEXT = (
    "model.vision_model",
    "model.multi_modal_projector",
    "model.language_model",
)
_BLOCK = BlockParts(
    ln1="input_layernorm", attn="self_attn", q="q_proj", k="k_proj", v="v_proj", o="o_proj",
    ln2="post_attention_layernorm", mlp="mlp", mlp_pre="fc1", mlp_post="fc2",
)  # fmt: skip
_MASKED = (
    "this block of cross-attention cuts out positions before the first picture and gates the "
    "rest, and no module returns the result; hook_resid_post minus hook_resid_mid is it."
)
_SEVERAL = (
    "its projector reads the tower's last block and several earlier ones at once; use "
    "projector.hook_in."
)
_BY_ATTENTION = "Pictures have no positions in this text: its cross-attention blocks read them"


class MllamaFamily(Family):
    """`MllamaForConditionalGeneration`."""

    name = "mllama"
    model_types = ("mllama",)
    takes_images = True
    pictures_by_text = True
    not_replayable = "its text model reads pictures by cross-attention"

    def architecture(self, model: torch.nn.Module) -> Architecture:
        """The parts of an Mllama; its global encoder's blocks are `vision.global.blocks`."""
        config, tower = model.config, model.config.vision_config
        decoder = _decoder(model)
        text, (local, whole) = decoder.stack, _tower(model)
        before = [
            image_point("vision.hook_embed", local.size.d_model, "Patch embeddings with "
                        "positions, as the first block reads them", InputSite(f"{local.path}.0")),
            *local.points(),
            *whole.points(),
            _projector_point("hook_in", "d_vision", tower.vision_output_dim,
                             "What the projector reads: one row a patch of every tile",
                             InputSite(_PROJECTOR, "input", view=RowsView())),
            _projector_point("hook_out", "d_model", text.size.d_model, "Picture features in the "
                             "language model's width: what cross-attention reads",
                             OutputSite(_PROJECTOR, view=RowsView())),
        ]  # fmt: skip
        return assemble(
            model, self.name, decoder, InputSite(f"{text.path}.0"), before=before,
            merged_doc="The language model's input: embeddings; pictures are not among them",
            vision=VisionConfig(
                **asdict(local.size),
                patch_size=tower.patch_size,
                image_size=tower.image_size,
                n_class_tokens=1,
                n_layers_read=local.size.n_layers,
            ),
            missing={"vision.hook_out": _SEVERAL, **local.missing(), **whole.missing()},
            image_token_id=config.image_token_id,
        )  # fmt: skip

    def tokenize(self, processor: Any, texts: list[str], **options: Any) -> Mapping[str, Any]:
        """As the processor writes texts beside pictures: with a beginning of its own."""
        if tokenizer_of(processor) is processor:
            return super().tokenize(processor, texts, **options)
        return processor(text=texts, **options)

    def count_images(self, inputs: Mapping[str, Tensor]) -> int:
        """An aspect ratio of 0 fills up rows with fewer pictures."""
        ratios = inputs.get("aspect_ratio_ids")
        if ratios is None or inputs.get("pixel_values") is None:
            return 0
        return int((ratios > 0).sum())

    def pictures(self, batch: PictureBatch) -> list[Picture]:
        """A picture fills a canvas of tiles from its top left; the tower reads tile after tile."""
        ratios, vision = batch.inputs["aspect_ratio_ids"].tolist(), batch.config.vision_config
        found, given = [len(p) for p in batch.places], [sum(r > 0 for r in row) for row in ratios]
        if given != found:
            raise PromptError(
                f"The rows of the prompt hold {found} image tokens and {given} pictures: write "
                "one <image> for each picture."
            )
        if len(set(given)) > 1:
            warnings.warn(
                "The rows of this batch have different numbers of pictures. This model then gives "
                "the rows with fewer other logits than it gives them alone, as transformers itself "
                "does: read rows of different numbers one by one.",
                stacklevel=2,
            )
        pictures: list[Picture] = []
        for row, mine in enumerate(ratios):
            for index in range(given[row]):
                size = batch.size(len(pictures))
                tiles = vision.supported_aspect_ratios[mine[index] - 1]
                spaces = _spaces(vision, tiles, size, row, index, len(mine))
                pictures.append(Picture(1, (), *spaces, why_no_grid=_BY_ATTENTION))
        return pictures


def _decoder(model: torch.nn.Module) -> Decoder:
    """The text model, its blocks of cross-attention described."""
    decoder = find_decoder(model.config.text_config, _TEXT, DECODERS["llama"])
    stack = decoder.stack
    heads = HeadView(stack.size.n_key_value_heads, stack.size.d_head)

    def cross(layer: int) -> dict[str, SiteMaker]:
        block = submodule(model, f"{stack.path}.{layer}")
        gate = partial(getattr, block, "cross_attn_attn_gate")
        before, after = f"{stack.path}.{layer - 1}", f"{stack.path}.{layer + 1}"
        ends = layer == stack.size.n_layers - 1
        passing = {
            # without pictures the block is skipped; the stream passes here all the same
            "hook_resid_pre": lambda b: OutputSite(before) if layer else InputSite(b),
            "hook_resid_post": lambda b: InputSite(decoder.norm if ends else after),
        }
        return passing | {
            "attn.hook_k": lambda b: OutputSite(f"{b}.cross_attn.k_proj", view=RowsView(heads)),
            "attn.hook_v": lambda b: OutputSite(f"{b}.cross_attn.v_proj", view=RowsView(heads)),
            "hook_attn_out": lambda b: OutputSite(f"{b}.cross_attn", view=ScaleView(gate, True)),
            "hook_resid_mid": lambda b: MidSite(
                InputSite(f"{b}.post_attention_layernorm"), None, OutputSite(b)
            ),
        }

    layers = model.config.text_config.cross_attention_layers
    layers = [i for i in layers if i < stack.size.n_layers]
    stack = replace(
        stack,
        layer_parts={i: replace(stack.parts, attn="cross_attn") for i in layers},
        layer_sites={i: cross(i) for i in layers},
        layer_lacks={i: {"hook_mlp_out": _MASKED} for i in layers},
        crossing=frozenset(layers),
        passing=frozenset({"hook_resid_pre", "hook_resid_post"}),
    )
    return replace(decoder, stack=stack)


def _tower(model: torch.nn.Module) -> tuple[Stack, Stack]:
    """The encoder, and the global encoder whose blocks gate what they add."""
    config = model.config.vision_config
    n_heads = config.attention_heads
    size = StackConfig(
        config.num_hidden_layers,
        config.hidden_size,
        n_heads,
        n_heads,
        config.hidden_size // n_heads,
        config.intermediate_size,
    )

    def gated(block: str, part: str, gate: str) -> OutputSite:
        weight = partial(getattr, submodule(model, block), gate)
        return OutputSite(f"{block}.{part}", view=ScaleView(weight, True))

    local = Stack(f"{_TOWER}.transformer.layers", _BLOCK, size, "vision.", "vision")
    whole = Stack(
        f"{_TOWER}.global_transformer.layers",
        _BLOCK,
        replace(size, n_layers=config.num_global_layers),
        "vision.global.",
        "vision",
        sites={
            "hook_attn_out": lambda b: gated(b, "self_attn", "gate_attn"),
            "hook_mlp_out": lambda b: gated(b, "mlp", "gate_ffn"),
            "hook_resid_mid": lambda b: MidSite(
                InputSite(f"{b}.{_BLOCK.ln2}"), gated(b, "mlp", "gate_ffn"), OutputSite(b)
            ),
        },
    )
    return local, whole


def _spaces(
    config: Any,
    tiles: Sequence[int],
    size: tuple[int, int] | None,
    row: int,
    index: int,
    n_images: int,
) -> tuple[ImageSpace, ImageSpace]:
    """A picture in the tower and in the projector's output: one grid over its whole canvas."""
    side = config.image_size // config.patch_size
    sequence = side**2 + 1
    padded = -(-sequence // 8) * 8  # the tower fills up each tile's sequence to a multiple of 8
    frame = (tiles[1] * config.image_size, tiles[0] * config.image_size)
    pixels = identity_map(frame) if size is None else _pixel_map(size, frame, config.image_size)

    def space(row: int, first: int, step: int) -> ImageSpace:
        starts = [first + tile * step for tile in range(tiles[0] * tiles[1])]
        patches = [
            starts[r // side * tiles[1] + c // side] + 1 + r % side * side + c % side
            for r in range(tiles[0] * side)
            for c in range(tiles[1] * side)
        ]
        grid = PatchGrid(tiles[0] * side, tiles[1] * side, tuple(patches), row, pixels)
        everything = tuple(s + i for s in starts for i in range(sequence))
        return ImageSpace((grid,), ((row, everything),))

    number = row * n_images + index
    return space(number, 0, padded), space(row, index * config.max_num_tiles * sequence, sequence)


def _pixel_map(size: tuple[int, int], frame: tuple[int, int], tile: int) -> PixelMap:
    from transformers.models.mllama.image_processing_pil_mllama import get_image_size_fit_to_canvas

    height, width = get_image_size_fit_to_canvas(size[1], size[0], frame[1], frame[0], tile)
    return PixelMap(size, frame, (float(width) / size[0], float(height) / size[1]))


def _projector_point(name: str, axis: str, width: int, doc: str, site: Any) -> Point:
    axes, sizes = ("batch", "pos", axis), (None, None, width)
    return Point(f"projector.{name}", axes, sizes, doc, site, "projector")
