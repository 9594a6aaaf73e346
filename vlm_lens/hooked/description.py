"""A model told in a few lines, and told apart from others."""

from __future__ import annotations

import hashlib
from html import escape
from typing import TYPE_CHECKING, Any

import torch

from vlm_lens.families import Architecture
from vlm_lens.points.sites import submodule
from vlm_lens.storage.weights import is_plain

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_RUNS = "runs"  # said without its label in text
_GROUPS = {
    "language model": lambda name: not name.startswith(("vision.", "projector.", "encoder.")),
    "encoder": lambda name: name.startswith("encoder."),
    "vision": lambda name: name.startswith("vision."),
    "projector": lambda name: name.startswith("projector."),
}


def describe(*model: Any) -> str:
    """Family, sizes, dtype, device, attention, and the points by group; arguments of `_facts`."""
    title, facts, groups = _facts(*model)
    lines = [f"  {text if label == _RUNS else f'{label}: {text}'}" for label, text in facts]
    lines += [f"  points, {group}: {', '.join(names)}" for group, names in groups.items()]
    return "\n".join([title, *lines])


def describe_html(*model: Any) -> str:
    """The same as a table for notebooks; the points of each group are folded."""
    title, facts, groups = _facts(*model)
    rows = [(label, escape(text)) for label, text in facts]
    for group, names in groups.items():
        listed = ", ".join(f"<code>{escape(one)}</code>" for one in names)
        folded = f"<details><summary>{len(names)} kinds</summary>{listed}</details>"
        rows.append((f"points, {group}", folded))
    left = "text-align:left;vertical-align:top"
    body = "".join(
        f"<tr><th style='{left};white-space:nowrap'>{escape(label)}</th>"
        f"<td style='{left};white-space:normal'>{cell}</td></tr>"
        for label, cell in rows
    )
    return f"<div><b>{escape(title)}</b></div><table style='table-layout:auto'>{body}</table>"


def _facts(
    name: str,
    hf_model: PreTrainedModel,
    architecture: Architecture,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[str, list[tuple[str, str]], dict[str, list[str]]]:
    """A title, what is said of each part, and the names of points by group."""
    cfg = architecture.cfg
    facts = [
        ("language model", f"{cfg.n_layers} layers, d_model {cfg.d_model}, "
         f"{cfg.n_heads} heads of {cfg.d_head}, vocabulary {cfg.d_vocab}")
    ]  # fmt: skip
    if cfg.vision:
        v = cfg.vision
        frame = f"{v.image_size} px" if v.image_size else "pictures of any size"
        facts.append(
            ("vision tower", f"{v.n_layers} layers ({v.n_layers_read} read), d_model {v.d_model}, "
             f"{v.n_heads} heads, {frame} in patches of {v.patch_size}")
        )  # fmt: skip
    attention = hf_model.config._attn_implementation
    facts.append((_RUNS, f"{str(dtype).removeprefix('torch.')} on {device}, {attention}"))
    if weights := getattr(hf_model.config, "weights", None):
        facts.append(("weights", str(weights)))
    groups = {
        title: names
        for title, belongs in _GROUPS.items()
        if (names := [name for name in architecture.points.groups() if belongs(name)])
    }
    return f"HookedVLM {name} ({cfg.family}, {type(hf_model).__name__})", facts, groups


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
