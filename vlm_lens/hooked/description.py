"""A model told in a few lines, and told apart from others."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch

from vlm_lens.families import Architecture
from vlm_lens.points.sites import submodule
from vlm_lens.storage.weights import is_plain

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_GROUPS = {
    "language model": lambda name: not name.startswith(("vision.", "projector.", "encoder.")),
    "encoder": lambda name: name.startswith("encoder."),
    "vision": lambda name: name.startswith("vision."),
    "projector": lambda name: name.startswith("projector."),
}


def describe(
    name: str,
    hf_model: PreTrainedModel,
    architecture: Architecture,
    device: torch.device,
    dtype: torch.dtype,
) -> str:
    """Family, sizes, dtype, device, attention, and the points by group."""
    cfg = architecture.cfg
    lines = [
        f"HookedVLM {name} ({cfg.family}, {type(hf_model).__name__})",
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
    attention = hf_model.config._attn_implementation
    lines.append(f"  {str(dtype).removeprefix('torch.')} on {device}, {attention}")
    if weights := getattr(hf_model.config, "weights", None):
        lines.append(f"  weights: {weights}")
    groups = architecture.points.groups()
    for title, belongs in _GROUPS.items():
        names = [name for name in groups if belongs(name)]
        if names:
            lines.append(f"  points, {title}: {', '.join(names)}")
    return "\n".join(lines)


def unembed_hash(hf_model: PreTrainedModel, architecture: Architecture) -> str | None:
    """A hash of the unembedding, one for a model in every floating dtype.

    `None` where the weights cannot be read: on the meta device (offloaded), quantised or sharded.
    """
    weight: Any = getattr(submodule(hf_model, architecture.unembed), "weight", None)
    if not is_plain(weight) or weight.device.type == "meta" or not weight.is_floating_point():
        return None
    rows = torch.linspace(0, len(weight) - 1, min(len(weight), 64)).long()
    signs = weight.detach()[rows.to(weight.device)].signbit().cpu()  # the same however rounded
    shape = str(tuple(weight.shape)).encode()
    return hashlib.sha256(shape + signs.numpy().tobytes()).hexdigest()[:16]
