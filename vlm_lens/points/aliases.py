"""Names by which users of TransformerLens know a point, where the point is the same thing.

A name is here only if what is read there is what is read here, and a write means the same. Where a
name would mean something else on some models (a norm after attention, a gate), it stands for a
point only on the others, and asking for it says what to ask for instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from vlm_lens.points.point import Point
from vlm_lens.points.sites import FlatView, ScaleView, Site

# Within a block: name there -> name here.
IN_BLOCK = {
    "hook_in": "hook_resid_pre",
    "hook_out": "hook_resid_post",
    "ln1.hook_out": "ln1.hook_normalized",
    "ln2.hook_out": "ln2.hook_normalized",
    "attn.hook_in": "ln1.hook_normalized",
    "attn.q.hook_out": "attn.hook_q",
    "attn.k.hook_out": "attn.hook_k",
    "attn.v.hook_out": "attn.hook_v",
    "attn.o.hook_in": "attn.hook_z",
    "attn.o.hook_out": "hook_attn_out",
    "attn.hook_out": "hook_attn_out",
    "ln1_post.hook_out": "hook_attn_out",
    "mlp.hook_in": "ln2.hook_normalized",
    "mlp.gate.hook_out": "mlp.hook_pre",
    "mlp.in.hook_out": "mlp.hook_pre_linear",
    "mlp.out.hook_in": "mlp.hook_post",
    "mlp.out.hook_out": "hook_mlp_out",
    "mlp.hook_out": "hook_mlp_out",
    "ln2_post.hook_out": "hook_mlp_out",
}

# Outside the blocks.
OUTSIDE = {
    "embed.hook_out": "hook_embed",
    "ln_final.hook_out": "ln_final.hook_normalized",
    "unembed.hook_in": "ln_final.hook_normalized",
    "unembed.hook_out": "hook_logits",
    "hook_unembed": "hook_logits",
    "vision_encoder.embeddings.hook_out": "vision.hook_embed",
    "vision_encoder.hook_vision_embed": "vision.hook_embed",
    "vision_encoder.pre_layernorm.hook_out": "vision.blocks.0.hook_resid_pre",
    "vision_encoder.hook_out": "vision.hook_out",
    "vision_encoder.hook_vision_out": "vision.hook_out",
    "vision_projector.hook_in": "projector.hook_in",
    "vision_projector.hook_vision_proj_in": "projector.hook_in",
    "vision_projector.hook_out": "projector.hook_out",
    "vision_projector.hook_vision_proj_out": "projector.hook_out",
}

# What blocks of the tower are called there.
TOWER_BLOCKS = ("vision_encoder.encoder_layers.", "vision_encoder.blocks.")

# Names that have no counterpart on some or all models: glob -> reason.
WITHOUT = {
    "vision_encoder.hook_*out": (
        "in TransformerLens it is the tower's last output, which this model's projector does not "
        "read; vision.hook_out is what it reads."
    ),
    "*.attn*.hook_out": (
        "here a norm or a gate stands between attention and the residual stream, and "
        "hook_attn_out is what the stream receives, after it."
    ),
    "*.mlp*.hook_out": (
        "here a norm or a gate stands between the MLP and the residual stream, and hook_mlp_out "
        "is what the stream receives, after it."
    ),
    "*.ln1.hook_in": "hook_resid_pre is the residual stream that this norm reads.",
    "*.ln2.hook_in": "hook_resid_mid is the residual stream that this norm reads.",
    "*.hook_scale": "norms are not taken apart; ln1, ln2 and ln_final have hook_normalized.",
    "*.hook_rot_?": "queries and keys are hook_q and hook_k, before the rotary embedding.",
    "*.hook_result": "heads are hook_z, before the output projection.",
}

_TOWER_HERE = "vision.blocks."


def aliases(points: Mapping[str, Point]) -> dict[str, str]:
    """The other names of a model's points: name there -> name here."""
    found = {there: here for there, here in OUTSIDE.items() if _fits_outside(there, here, points)}
    for block in _blocks(points):
        there_blocks = [block]
        if block.startswith(_TOWER_HERE):
            there_blocks = [t + block.removeprefix(_TOWER_HERE) for t in TOWER_BLOCKS]
            for name in points:  # the names that are the same within a block
                if name.startswith(block):
                    found |= {t + name.removeprefix(block): name for t in there_blocks}
        for there, here in IN_BLOCK.items():
            if there == "mlp.in.hook_out" and f"{block}{here}" not in points:
                here = "mlp.hook_pre"  # an MLP without a gate
            if f"{block}{here}" in points and _fits_in_block(there, block, points):
                found |= {t + there: f"{block}{here}" for t in there_blocks}
    return {there: here for there, here in found.items() if there not in points}


def here(name: str) -> str:
    """The name with the tower's blocks called as they are here, for what is said of it."""
    for there in TOWER_BLOCKS:
        if name.startswith(there):
            return _TOWER_HERE + name.removeprefix(there)
    return name


def matches(name: str, glob: str) -> bool:
    """Whether a glob selects one of these names, `*` standing for no dot.

    Many of them end alike, `blocks.3.hook_out` and `blocks.3.attn.q.hook_out`, so that a `*` for
    several parts would select different things at once.
    """
    parts, globs = name.split("."), glob.split(".")
    return len(parts) == len(globs) and all(map(fnmatchcase, parts, globs))


def why_without(name: str, known: Mapping[str, str]) -> str:
    """Why a name stands for no point, where it is one of TransformerLens's; empty otherwise.

    Args:
        name: The name.
        known: The names that do stand for a point of this model.
    """
    if any(_any_layer(name) == _any_layer(other) for other in known):
        return ""  # another block has it
    return next((reason for glob, reason in WITHOUT.items() if fnmatchcase(name, glob)), "")


def _any_layer(name: str) -> str:
    return re.sub(r"\.-?\d+\.", ".*.", name)


def _blocks(points: Mapping[str, Point]) -> list[str]:
    """What the names of each block start with, `blocks.0.` and so on."""
    starts = (n.removesuffix("hook_resid_post") for n in points if n.endswith("hook_resid_post"))
    return [start for start in starts if start.startswith(("blocks.", _TOWER_HERE))]


def _fits_outside(there: str, here: str, points: Mapping[str, Point]) -> bool:
    if here not in points:
        return False
    if here == "vision.hook_out":
        return getattr(points[here].site, "path", ()) == ("last_hidden_state",)
    return True


def _fits_in_block(there: str, block: str, points: Mapping[str, Point]) -> bool:
    rule = _RULES.get(there)
    return rule is None or rule({n: points.get(block + n) for n in _LOOKED_AT})


_Rule = Callable[[Mapping[str, Point | None]], bool]
_LOOKED_AT = ("attn.hook_z", "hook_attn_out", "mlp.hook_post", "hook_mlp_out",
              "ln2.hook_normalized", "mlp.hook_pre_linear")  # fmt: skip


def _added_as_it_is(added: str, inside: str) -> _Rule:
    """Whether what a part adds to the stream is what the part itself gives."""

    def rule(block: Mapping[str, Point | None]) -> bool:
        outer, inner = block[added], block[inside]
        if outer is None or inner is None:
            return False
        within = f"{inner.site.module}.".startswith(f"{outer.site.module}.")
        return within and not _scaled(outer.site)

    return rule


def _normed_after(added: str, inside: str) -> _Rule:
    """Whether a norm of its own stands between a part and the stream."""
    as_it_is = _added_as_it_is(added, inside)

    def rule(block: Mapping[str, Point | None]) -> bool:
        outer = block[added]
        if outer is None or block[inside] is None:
            return False
        return not _scaled(outer.site) and not as_it_is(block)

    return rule


def _has(name: str) -> _Rule:
    return lambda block: block[name] is not None


_ATTN, _MLP = ("hook_attn_out", "attn.hook_z"), ("hook_mlp_out", "mlp.hook_post")
_RULES: dict[str, _Rule] = {
    "attn.hook_in": _has("ln2.hook_normalized"),  # otherwise the MLP reads the same norm
    "mlp.gate.hook_out": _has("mlp.hook_pre_linear"),
    "attn.o.hook_out": _added_as_it_is(*_ATTN),
    "attn.hook_out": _added_as_it_is(*_ATTN),
    "ln1_post.hook_out": _normed_after(*_ATTN),
    "mlp.out.hook_out": _added_as_it_is(*_MLP),
    "mlp.hook_out": _added_as_it_is(*_MLP),
    "ln2_post.hook_out": _normed_after(*_MLP),
}


def _scaled(site: Site) -> bool:
    view = getattr(site, "view", None)
    while isinstance(view, FlatView):
        view = view.inner
    return isinstance(view, ScaleView)
