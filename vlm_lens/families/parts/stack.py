"""A stack of transformer blocks: the names of its modules, and the points that it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vlm_lens.points.config import StackConfig
from vlm_lens.points.point import Point
from vlm_lens.points.sites import (
    AttentionSite,
    FlatView,
    HeadView,
    InputSite,
    MidSite,
    OutputSite,
    Site,
)


@dataclass(frozen=True)
class BlockParts:
    """The names of a block's modules, for blocks of attention and MLP, each added to the stream.

    Attributes:
        ln1: The norm before attention.
        attn: The attention module.
        q: Its query projection; `None` where `Stack.sites` says where queries are.
        k: Its key projection, likewise.
        v: Its value projection, likewise.
        o: Its output projection.
        ln2: The norm before the MLP; `None` where attention and MLP read the same norm.
        mlp: The MLP.
        mlp_pre: Within the MLP, the layer whose output enters the non-linearity.
        mlp_post: Within the MLP, the layer that the non-linearity's result enters.
        mlp_linear: Within a gated MLP, the other branch; `None` without a gate.
        attn_out: The module whose output is added to the stream after attention, where that is
            not the attention module itself (a norm after it, say).
        mlp_out: Likewise after the MLP.
    """

    ln1: str
    attn: str
    q: str | None
    k: str | None
    v: str | None
    o: str
    ln2: str | None
    mlp: str
    mlp_pre: str | None
    mlp_post: str
    mlp_linear: str | None = None
    attn_out: str | None = None
    mlp_out: str | None = None


_NAMELESS = BlockParts("", "", "", "", "", "", "", "", "", "")
_ENDS = ("hook_resid_pre", "hook_resid_post")
_PARALLEL = "attention and MLP read the same norm and are added together."

SiteMaker = Callable[[str], Site]


@dataclass(frozen=True)
class Stack:
    """One stack of blocks: where it is and how large.

    Attributes:
        path: Path of the list of blocks.
        parts: The names within a block; `None` where only `sites` and `layer_sites` say where
            points are, beside the stream entering and leaving a block.
        size: Its sizes.
        prefix: What its point names start with: nothing, or `vision.`.
        space: Whose positions it counts.
        unread_from: Blocks from this one on run but are not read by what follows.
        unread: Why not.
        sites: Points that are not where `parts` would put them: name -> function from a block's
            path to the site. A name that `parts` does not have, such as `mlp.hook_pre_linear`, is
            added.
        lacks: Points that these blocks do not have: name -> reason.
        single: Whether its tensors have no axis of rows: one sequence holds the pictures of the
            whole batch, one after the other, and is shown as a single row.
        layer_parts: Blocks whose names differ from `parts`: layer -> names.
        layer_sites: Likewise for `sites`.
        layer_lacks: Likewise for `lacks`.
        layer_read_only: Points that cannot be written: layer -> name -> why not.
        crossing: Blocks of cross-attention, computed only where there are pictures: their keys and
            values count the projector's positions.
        crosses_to: Where blocks attend to another sequence beside their own: whose positions
            the keys of `cross_attn` count.
        passing: Points of such blocks that are where the stream passes without pictures too.
    """

    path: str
    parts: BlockParts | None
    size: StackConfig
    prefix: str = ""
    space: str = "text"
    unread_from: int | None = None
    unread: str = ""
    sites: Mapping[str, SiteMaker] = field(default_factory=dict)
    lacks: Mapping[str, str] = field(default_factory=dict)
    single: bool = False
    layer_parts: Mapping[int, BlockParts] = field(default_factory=dict)
    layer_sites: Mapping[int, Mapping[str, SiteMaker]] = field(default_factory=dict)
    layer_lacks: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    layer_read_only: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    crossing: frozenset[int] = frozenset()
    crosses_to: str = ""
    passing: frozenset[str] = frozenset()

    def points(self) -> Iterator[Point]:
        """The points of every block, in the order in which they are computed."""
        for layer in range(self.size.n_layers):
            dead = self.unread_from is not None and layer >= self.unread_from
            yield from self._block(layer, self.unread if dead else "")

    def missing(self) -> dict[str, str]:
        """What these blocks lack: glob -> reason."""
        lacks = {f"{self.prefix}blocks.*.{n}": reason for n, reason in self._lacks(None).items()}
        for layer in range(self.size.n_layers):
            for name, reason in self._lacks(layer).items():
                if name not in self._lacks(None):
                    lacks[f"{self.prefix}blocks.{layer}.{name}"] = reason
        return lacks

    def _lacks(self, layer: int | None) -> dict[str, str]:
        parts = self.layer_parts.get(layer, self.parts)
        parallel = parts is not None and not parts.ln2
        own = (
            dict.fromkeys(("hook_resid_mid", "ln2.hook_normalized"), _PARALLEL) if parallel else {}
        )
        return {**own, **self.lacks, **self.layer_lacks.get(layer, {})}

    def _block(self, layer: int, read_only: str) -> Iterator[Point]:
        block = f"{self.path}.{layer}"
        batch = "batch" if self.space in ("text", "encoder") else "image"
        given = {**self.sites, **self.layer_sites.get(layer, {})}
        lacks = self._lacks(layer)
        for name, (axes, sizes, doc, site) in self._table(layer).items():
            if name in given:
                site = given[name](block)
            elif self.parts is None and name not in _ENDS:
                site = None
            if site is None or name in lacks:
                continue
            if self.single:
                site = in_one_row(site)
            rows = 1 if self.single else None
            if axes[0] == "head" and axes[-1] == "key":
                axes, sizes = (batch, *axes), (rows, *sizes)
            else:
                axes, sizes = (batch, "pos", *axes), (rows, None, *sizes)
            crosses = layer in self.crossing and name not in self.passing
            space = self.space
            keys = self.crosses_to if name.startswith("cross_attn") else "projector" * crosses
            if keys and name.endswith(("attn.hook_k", "attn.hook_v")):
                space = keys
            barred = read_only or self.layer_read_only.get(layer, {}).get(name, "")
            yield Point(
                f"{self.prefix}blocks.{layer}.{name}", axes, sizes, doc, site, space, barred,
                crosses, keys if "key" in axes else "",
            )  # fmt: skip

    def _table(self, layer: int) -> dict[str, tuple[tuple, tuple, str, Site | None]]:
        """Name -> axes and sizes after batch and position, what it is, usual site."""
        parts, size = self.layer_parts.get(layer, self.parts) or _NAMELESS, self.size
        block = f"{self.path}.{layer}"
        attn, mlp = f"{block}.{parts.attn}", f"{block}.{parts.mlp}"
        after = "cross-attention" if self.crosses_to else "MLP"
        d = (("d_vision" if self.space == "vision" else "d_model",), (size.d_model,))
        d_mlp = (("d_mlp",), (size.d_mlp,))
        heads = (("head", "d_head"), (size.n_heads, size.d_head))
        kv_heads = (("head", "d_head"), (size.n_key_value_heads, size.d_head))
        square = (("head", "query", "key"), (size.n_heads, None, None))
        by_head = HeadView(size.n_heads, size.d_head)
        by_kv_head = HeadView(size.n_key_value_heads, size.d_head)

        def out(parent: str, name: str | None, view: HeadView | None = None) -> OutputSite | None:
            return OutputSite(f"{parent}.{name}", view=view) if name else None

        attn_out, mlp_out = out(block, parts.attn_out or parts.attn), out(block, parts.mlp_out)
        mlp_out = mlp_out or OutputSite(mlp)
        mid = None
        if parts.ln2:
            mid = MidSite(InputSite(f"{block}.{parts.ln2}"), mlp_out, OutputSite(block))
        reads = "the norm's output, its weight and bias applied"
        return {
            "hook_resid_pre": (*d, "Residual stream entering the block", InputSite(block)),
            "ln1.hook_normalized": (*d, f"What attention reads: {reads}", out(block, parts.ln1)),
            "attn.hook_q": (*heads, "Queries as projected, before norms and rotary embedding",
                            out(attn, parts.q, by_head)),
            "attn.hook_k": (*kv_heads, "Keys as projected, before norms and rotary embedding",
                            out(attn, parts.k, by_kv_head)),
            "attn.hook_v": (*kv_heads, "Values", out(attn, parts.v, by_kv_head)),
            "attn.hook_attn_scores": (*square, "Attention scores, scaled and masked, before "
                                      "softmax", AttentionSite(attn, "scores")),
            "attn.hook_pattern": (*square, "Attention pattern: each query's weights over keys",
                                  AttentionSite(attn, "pattern")),
            "attn.hook_z": (*heads, "Each head's mixed values, before the output projection",
                            InputSite(f"{attn}.{parts.o}", view=by_head)),
            "hook_attn_out": (*d, "What attention adds to the residual stream", attn_out),
            "hook_resid_mid": (*d, f"Residual stream between attention and {after}", mid),
            **self._cross_table(heads, kv_heads, square, d),
            "ln2.hook_normalized": (*d, f"What the MLP reads: {reads}", out(block, parts.ln2)),
            "mlp.hook_pre": (*d_mlp, "MLP neurons before the non-linearity",
                             out(mlp, parts.mlp_pre)),
            "mlp.hook_pre_linear": (*d_mlp, "The gated MLP's linear branch",
                                    out(mlp, parts.mlp_linear)),
            "mlp.hook_post": (*d_mlp, "MLP neurons after the non-linearity (and the gate)",
                              InputSite(f"{mlp}.{parts.mlp_post}", keyword="input")),
            "mlp.hook_router_logits": (("expert",), (None,), "Scores of the experts, before those "
                                       "of each position are chosen", None),
            "hook_mlp_out": (*d, "What the MLP adds to the residual stream", mlp_out),
            "hook_resid_post": (*d, "Residual stream leaving the block", OutputSite(block)),
        }  # fmt: skip

    def _cross_table(self, heads: tuple, kv_heads: tuple, square: tuple, d: tuple) -> dict:
        """The points of attention to another sequence, where blocks have it."""
        if not self.crosses_to:
            return {}
        whose = {"encoder": "encoder's output", "vision": "tower's output"}[self.crosses_to]
        return {
            "cross_attn.hook_q": (*heads, "Queries of attention to the " + whose, None),
            "cross_attn.hook_k": (*kv_heads, f"Its keys, made of the {whose}", None),
            "cross_attn.hook_v": (*kv_heads, f"Its values, made of the {whose}", None),
            "cross_attn.hook_attn_scores": (*square, "Its scores, before softmax", None),
            "cross_attn.hook_pattern": (*square, "Its pattern: each query's weights over the "
                                        + whose, None),
            "cross_attn.hook_z": (*heads, "Its heads' mixed values", None),
            "hook_cross_attn_out": (*d, "What it adds to the residual stream", None),
            "hook_resid_mid_cross": (*d, "Residual stream between it and the MLP", None),
        }  # fmt: skip


def in_one_row(site: Site) -> Site:
    """A site whose tensor has no axis of rows, shown as one row."""
    if isinstance(site, AttentionSite):
        return site
    if isinstance(site, MidSite):
        return replace(site, norm=in_one_row(site.norm))
    return replace(site, view=FlatView(site.view, single=True))


def stack_size(config: Any) -> StackConfig:
    """The sizes in the config of a text model or a tower, under their usual names."""
    n_heads = config.num_attention_heads
    return StackConfig(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=n_heads,
        n_key_value_heads=getattr(config, "num_key_value_heads", None) or n_heads,
        d_head=getattr(config, "head_dim", None) or config.hidden_size // n_heads,
        d_mlp=getattr(config, "intermediate_size", None) or config.ffn_dim,
    )
