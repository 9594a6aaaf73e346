"""Vision towers that other models build on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from vlm_lens.errors import ModelError
from vlm_lens.families.parts.stack import BlockParts, SiteMaker, stack_size
from vlm_lens.points.config import StackConfig
from vlm_lens.points.point import Point
from vlm_lens.points.sites import FusedHeadView, InputSite, MidSite, OutputSite, ScaleView, Site

_VIT = BlockParts(
    ln1="layer_norm1", attn="self_attn", q="q_proj", k="k_proj", v="v_proj", o="out_proj",
    ln2="layer_norm2", mlp="mlp", mlp_pre="fc1", mlp_post="fc2",
)  # fmt: skip


@dataclass(frozen=True)
class Tower:
    """Where a vision tower keeps its parts, relative to the tower.

    Attributes:
        root: Path from the tower to the module that holds the parts.
        parts: The names within a block.
        n_class_tokens: Positions before the first patch.
        size: Its sizes.
        layers: The list of blocks.
        embed: The module whose output enters the first block, or its norm.
        embed_doc: What that output is.
        sites: Points that are elsewhere; see `Stack.sites`.
    """

    root: str
    parts: BlockParts
    n_class_tokens: int
    size: StackConfig
    layers: str = "encoder.layers"
    embed: str = "embeddings"
    embed_doc: str = "Patch embeddings with positions"
    sites: Mapping[str, SiteMaker] = field(default_factory=dict)

    def path(self, tower: str, part: str) -> str:
        """The full path of a part of the tower at path `tower`."""
        return ".".join(p for p in (tower, self.root, part) if p)


# A norm, then attention or a gated MLP; it packs the patches of all pictures into one sequence.
_PIXTRAL = BlockParts(
    ln1="attention_norm", attn="attention", q="q_proj", k="k_proj", v="v_proj", o="o_proj",
    ln2="ffn_norm", mlp="feed_forward", mlp_pre="gate_proj", mlp_linear="up_proj",
    mlp_post="down_proj",
)  # fmt: skip

_INTERNVL = BlockParts(
    ln1="layernorm_before", attn="attention", q="q_proj", k="k_proj", v="v_proj",
    o="projection_layer", ln2="layernorm_after", mlp="mlp", mlp_pre="fc1", mlp_post="fc2",
)  # fmt: skip

_BLIP2 = replace(_VIT, q=None, k=None, v=None, o="projection")

_CLASS_TOKENS = {
    "clip_vision_model": 1,
    "siglip_vision_model": 0,
    "idefics2_vision": 0,
    "idefics3_vision": 0,
    "smolvlm_vision": 0,
    "pixtral": 0,
    "internvl_vision": 1,
    "blip_2_vision_model": 1,
}

# Checkpoints of these write the whole model's type into the tower's config too.
_IDEFICS = ("idefics2", "idefics3", "smolvlm")


def describe_tower(tower: torch.nn.Module, config: Any) -> Tower:
    """The parts of a CLIP, SigLIP, Pixtral, InternVL or BLIP-2 tower.

    Raises:
        ModelError: A tower of another type.
    """
    kind = f"{config.model_type}_vision" if config.model_type in _IDEFICS else config.model_type
    if kind not in _CLASS_TOKENS:
        raise ModelError(
            f"The vision tower is of type {kind!r}; known are {', '.join(sorted(_CLASS_TOKENS))}."
        )
    size = stack_size(config)
    n_class = _CLASS_TOKENS[kind]
    if kind == "pixtral":
        return Tower(
            "", _PIXTRAL, n_class, size, "transformer.layers", "ln_pre", "Patch embeddings, normed"
        )  # fmt: skip
    if kind == "internvl_vision":
        return Tower("", _INTERNVL, n_class, size, "encoder.layer", sites=_scaled_sites(tower))
    if kind == "blip_2_vision_model":
        return Tower("", _BLIP2, n_class, size, sites=_fused_sites(size))
    # transformers moved the tower's parts up by one module between 5.0 and 5.23
    root = "" if hasattr(tower, "encoder") else "vision_model"
    return Tower(root, _VIT, n_class, size)


def _fused_sites(size: StackConfig) -> dict[str, SiteMaker]:
    """Queries, keys and values out of one projection."""

    def part(number: int) -> SiteMaker:
        view = FusedHeadView(size.n_heads, size.d_head, number)
        return lambda block: OutputSite(f"{block}.self_attn.qkv", view=view)

    return {"attn.hook_q": part(0), "attn.hook_k": part(1), "attn.hook_v": part(2)}


def _scaled_sites(tower: torch.nn.Module) -> dict[str, SiteMaker]:
    """What InternVL's blocks add: what attention and MLP give, times a vector of the block."""

    def branch(block: str, part: str, weight: str) -> OutputSite:
        layer = tower.encoder.layer[int(block.rsplit(".", 1)[1])]
        return OutputSite(f"{block}.{part}", view=ScaleView(partial(getattr, layer, weight)))

    def mid(block: str) -> MidSite:
        norm = InputSite(f"{block}.{_INTERNVL.ln2}")
        return MidSite(norm, branch(block, "mlp", "lambda_2"), OutputSite(block))

    return {
        "hook_attn_out": lambda block: branch(block, "attention", "lambda_1"),
        "hook_resid_mid": mid,
        "hook_mlp_out": lambda block: branch(block, "mlp", "lambda_2"),
    }


def image_point(
    name: str, width: int, doc: str, site: Site, *, space: str = "vision", axis: str = "d_vision"
) -> Point:
    """A point of the tower or the projector outside their blocks, `[image, pos, width]`."""
    return Point(name, ("image", "pos", axis), (None, None, width), doc, site, space)
