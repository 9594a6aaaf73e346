"""A model told in a few lines, and told apart from others."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from vlm_lens.points.sites import submodule

if TYPE_CHECKING:
    from vlm_lens.model.hooked_vlm import HookedVLM

_GROUPS = {
    "language model": lambda name: not name.startswith(("vision.", "projector.")),
    "vision": lambda name: name.startswith("vision."),
    "projector": lambda name: name.startswith("projector."),
}


def describe(vlm: HookedVLM) -> str:
    """Family, sizes, dtype, device, attention, and the points by group."""
    cfg = vlm.cfg
    lines = [
        f"HookedVLM {vlm.name} ({cfg.family}, {type(vlm.hf_model).__name__})",
        f"  language model: {cfg.n_layers} layers, d_model {cfg.d_model}, "
        f"{cfg.n_heads} heads of {cfg.d_head}, vocabulary {cfg.d_vocab}",
    ]
    if cfg.vision:
        v = cfg.vision
        frame = f"{v.image_size} px" if v.image_size else "pictures of any size"
        lines.append(
            f"  vision tower: {v.n_layers} layers ({v.n_layers_read} read), d_model {v.d_model}, "
            f"{v.n_heads} heads, {frame} in patches of {v.patch_size}"
        )
    attention = vlm.hf_model.config._attn_implementation
    lines.append(f"  {str(vlm.dtype).removeprefix('torch.')} on {vlm.device}, {attention}")
    groups = vlm.architecture.points.groups()
    for title, belongs in _GROUPS.items():
        names = [name for name in groups if belongs(name)]
        if names:
            lines.append(f"  points, {title}: {', '.join(names)}")
    return "\n".join(lines)


def unembed_hash(vlm: HookedVLM) -> str | None:
    """A hash of the unembedding, one for a model in every floating dtype.

    `None` where the weights cannot be read: on the meta device (offloaded) or quantised.
    """
    weight = getattr(submodule(vlm.hf_model, vlm.architecture.unembed), "weight", None)
    if weight is None or weight.device.type == "meta" or not weight.is_floating_point():
        return None
    rows = torch.linspace(0, len(weight) - 1, min(len(weight), 64)).long()
    signs = weight.detach()[rows.to(weight.device)].signbit().cpu()  # the same however rounded
    shape = str(tuple(weight.shape)).encode()
    return hashlib.sha256(shape + signs.numpy().tobytes()).hexdigest()[:16]
