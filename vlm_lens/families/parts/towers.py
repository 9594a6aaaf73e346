"""Vision towers that other models build on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch

from vlm_lens.families.parts.stack import BlockParts, SiteMaker, Stack, stack_size
from vlm_lens.families.parts.views import RowsOfPicturesView
from vlm_lens.points.config import StackConfig, VisionConfig
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
        embed: The module whose output enters the first block, or its norm; none where only the
            input of that block is known.
        embed_doc: What that output is.
        sites: Points that are elsewhere; see `Stack.sites`.
        lacks: Points that its blocks do not have; see `Stack.lacks`.
        unknown: Why nothing of its blocks is known, where so.
    """

    root: str
    parts: BlockParts | None
    n_class_tokens: int
    size: StackConfig
    layers: str = "encoder.layers"
    embed: str = "embeddings"
    embed_doc: str = "Patch embeddings with positions"
    sites: Mapping[str, SiteMaker] = field(default_factory=dict)
    lacks: Mapping[str, str] = field(default_factory=dict)
    unknown: str = ""

    def stack(self, tower: str, n_read: int) -> Stack:
        """Its blocks, of which the first `n_read` are read by what follows."""
        return Stack(
            self.path(tower, self.layers), self.parts, self.size, prefix="vision.", space="vision",
            unread_from=n_read,
            unread=f"the projector reads block {n_read - 1}, so nothing reads this one",
            sites=self.sites, lacks=self.lacks,
        )  # fmt: skip

    def points(self, tower: str, stack: Stack) -> Iterator[Point]:
        """`vision.hook_embed`, and the points of its blocks."""
        if self.unknown:
            return
        site: Site = OutputSite(self.path(tower, self.embed))
        if not self.embed:
            first = f"{stack.path}.0"
            make = stack.layer_sites.get(0, {}).get("hook_resid_pre")
            site = make(first) if make else InputSite(first, view=RowsOfPicturesView())
        yield image_point("vision.hook_embed", self.size.d_model, self.embed_doc, site)
        yield from stack.points()

    def missing(self, stack: Stack) -> dict[str, str]:
        """What it lacks: glob -> reason."""
        return {"vision.*": self.unknown} if self.unknown else stack.missing()

    def config(self, config: Any, n_read: int) -> VisionConfig:
        """Its sizes, with those of patches and pictures that its config gives."""
        sides = {n: _side(getattr(config, n, None)) for n in ("patch_size", "image_size")}
        return VisionConfig(
            **asdict(self.size), **sides, n_class_tokens=self.n_class_tokens, n_layers_read=n_read
        )

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

# What is within a block, for a tower of which only the stream is known.
_WITHIN = ("hook_attn_out", "hook_resid_mid", "hook_mlp_out", "ln1.*", "ln2.*", "attn.*", "mlp.*")

# Checkpoints of these write the whole model's type into the tower's config too.
_IDEFICS = ("idefics2", "idefics3", "smolvlm")


def describe_tower(tower: torch.nn.Module, config: Any) -> Tower:
    """The parts of a CLIP, SigLIP, Pixtral, InternVL or BLIP-2 tower; of others the stream."""
    kind = f"{config.model_type}_vision" if config.model_type in _IDEFICS else config.model_type
    if kind not in _CLASS_TOKENS:
        return _by_stream(tower, config)
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


def _by_stream(tower: torch.nn.Module, config: Any) -> Tower:
    """A tower of another type: what enters and leaves each block, whatever is in it."""
    n_layers = _first(config, "num_hidden_layers", "depth", "num_layers", "n_layers")
    d_model = _first(config, "embed_dim", "hidden_size", "dim") or 1
    n_heads = _first(config, "num_attention_heads", "num_heads", "attention_heads") or 1
    lists = [
        name for name, m in tower.named_modules()
        if isinstance(m, torch.nn.ModuleList) and len(m) == n_layers
    ]  # fmt: skip
    lists = [n for n in lists if not any(n.startswith(f"{o}.") for o in lists)]
    if len(lists) != 1:
        kind = getattr(config, "model_type", type(tower).__name__)
        why = (
            f"the vision tower is of type {kind!r}, and {len(lists)} lists of modules could be its "
            f"blocks ({', '.join(lists) or 'none'})."
        )
        size = StackConfig(0, d_model, n_heads, n_heads, d_model // n_heads, 0)
        return Tower("", None, 0, size, unknown=why)
    names = ("cls_token", "class_embedding")
    n_class = max(int(hasattr(m, n)) for m in tower.modules() for n in names)
    view = RowsOfPicturesView()
    return Tower(
        "", None, n_class,
        StackConfig(n_layers, d_model, n_heads, n_heads, d_model // n_heads, 0),
        lists[0], "", "What the first block reads",
        sites={
            "hook_resid_pre": lambda block: InputSite(block, view=view),
            "hook_resid_post": lambda block: OutputSite(block, view=view),
        },
        lacks=dict.fromkeys(_WITHIN, "what is within the blocks of this tower is not described."),
    )  # fmt: skip


def layers_read(config: Any, n_layers: int) -> list[int]:
    """Which hidden states of the tower the projector reads; 0 is the first block's input."""
    layers = getattr(config, "vision_feature_layer", None)
    if layers is None:
        return [n_layers]
    return [i % (n_layers + 1) for i in ([layers] if isinstance(layers, int) else layers)]


def _first(config: Any, *names: str) -> Any:
    return next((v for n in names if isinstance(v := getattr(config, n, None), int)), None)


def _side(size: Any) -> Any:
    """The side of a square, which some configs write as two numbers."""
    return size[0] if isinstance(size, list | tuple) else size


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
