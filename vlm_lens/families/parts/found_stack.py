"""A stack made of blocks that were found one by one."""

from __future__ import annotations

from collections import Counter
from typing import Any

from vlm_lens.families.parts.found_block import ATTENTION, Block
from vlm_lens.families.parts.stack import Stack
from vlm_lens.points.config import StackConfig
from vlm_lens.points.sites import InputSite, OutputSite, View


def found_stack(
    path: str,
    config: Any,
    blocks: list[Block],
    keys: list[int | str],
    d_model: int,
    ends: View | None = None,
) -> Stack:
    """The stack of blocks that were described one by one.

    Args:
        path: Path of the list of blocks.
        config: Their config, for sizes that no block shows.
        blocks: The blocks.
        keys: By which argument each takes the stream.
        d_model: The stream's width.
        ends: How the stream is shown where a block begins and ends.
    """

    def most(values: list[int | None], otherwise: int) -> int:
        counted = Counter(v for v in values if v)
        return counted.most_common(1)[0][0] if counted else otherwise

    n_heads = most([b.n_heads for b in blocks], config_value(config, "num_attention_heads") or 1)
    size = StackConfig(
        n_layers=len(blocks),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=most([b.n_key_value_heads for b in blocks], n_heads),
        d_head=most([b.d_head for b in blocks], d_model // n_heads),
        d_mlp=most([b.d_mlp for b in blocks], _width(config) or 0),
    )
    sites, lacks = {}, {}
    for i, (block, key) in enumerate(zip(blocks, keys, strict=True)):
        odd = {
            n for n, mine, usual in (
                ("attn.hook_q", (block.n_heads, block.d_head), (size.n_heads, size.d_head)),
                ("attn.hook_attn_scores", block.n_heads or size.n_heads, size.n_heads),
                ("attn.hook_pattern", block.n_heads or size.n_heads, size.n_heads),
                ("attn.hook_z", (block.n_heads, block.d_head), (size.n_heads, size.d_head)),
                ("attn.hook_k", (block.n_key_value_heads, block.d_head),
                 (size.n_key_value_heads, size.d_head)),
                ("attn.hook_v", (block.n_key_value_heads, block.d_head),
                 (size.n_key_value_heads, size.d_head)),
                *((f"cross_{n}", block.cross_sizes, _cross_sizes(size)) for n in ATTENTION),
                ("mlp.hook_pre", block.d_mlp, size.d_mlp),
                ("mlp.hook_pre_linear", block.d_mlp, size.d_mlp),
                ("mlp.hook_post", block.d_mlp, size.d_mlp),
            ) if n in block.sites and mine != usual
        }  # fmt: skip
        index, keyword = (key, "hidden_states") if isinstance(key, int) else (99, key)
        own = {n: site for n, site in block.sites.items() if n not in odd}
        own["hook_resid_pre"] = lambda b, k=keyword, n=index: InputSite(b, k, n, ends)
        if ends is not None and "hook_resid_post" not in block.lacks:
            own["hook_resid_post"] = lambda b: OutputSite(b, view=ends)
        sites[i] = own
        lacks[i] = block.lacks | dict.fromkeys(odd, "its sizes differ from those of other blocks.")
    shared = {
        n: why for n, why in lacks[0].items() if all(row.get(n) == why for row in lacks.values())
    }
    rest = {i: {n: w for n, w in row.items() if n not in shared} for i, row in lacks.items()}
    return Stack(
        path, None, size, lacks=shared, layer_sites=sites, layer_lacks=rest,
        layer_read_only={i: b.read_only for i, b in enumerate(blocks) if b.read_only},
    )  # fmt: skip


def _cross_sizes(size: StackConfig) -> tuple[int, int, int]:
    return size.n_heads, size.n_key_value_heads, size.d_head


def config_value(config: Any, name: str) -> Any:
    """A value in a config; `None` where it has none, or one for each layer."""
    try:
        return getattr(config, name, None)
    except Exception:  # noqa: BLE001  transformers raises its own error for values of single layers
        return None


def _width(config: Any) -> int | None:
    value = config_value(config, "intermediate_size")
    return value if isinstance(value, int) else None


def activation_of(config: Any) -> Any:
    """The non-linearity that a config names, if it names one."""
    from transformers.activations import ACT2FN

    for name in ("hidden_act", "hidden_activation", "activation_function"):
        if isinstance(value := config_value(config, name), str):
            return ACT2FN[value]
    return None
