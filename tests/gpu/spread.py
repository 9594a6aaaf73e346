"""One model over several devices, as `device_map` spreads it, cut where it hurts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle

import torch
from torch import nn

from vlm_lens import HookedVLM

# transformers' own code joins what its blocks or its parts give, where these lie
_WHOLE = {"MllamaVisionModel", "VipLlavaModel"}


def device_map(vlm: HookedVLM, devices: Sequence[str]) -> dict[str, torch.device]:
    """Each block on another device than the one before it, and so with what is no block.

    What transformers never splits stays whole, as does what embeds pictures, and an output layer
    whose weights are the embedding's lies with it.

    Args:
        vlm: The model.
        devices: In turn.
    """
    devices = [torch.device(d) for d in devices]  # a set of strings has no order
    model, turns = vlm.hf_model, cycle(devices)
    whole = _WHOLE | set(model._no_split_modules or ())
    text = vlm.architecture.decoder.stack.path.rpartition(".")[0]
    found = {}
    for name in _units(model, "", whole):
        parent, _, own = name.rpartition(".")
        apart = own.isdigit() or text.startswith(parent)
        found[name] = next(turns) if apart else devices[0]
    if model.get_output_embeddings().weight is model.get_input_embeddings().weight:
        embedding = next(n for n, m in model.named_modules() if m is model.get_input_embeddings())
        found[vlm.architecture.unembed] = found[embedding]
    return found


def _units(module: nn.Module, path: str, whole: set[str]) -> Iterator[str]:
    """Paths of what lies on one device: blocks, and what has no blocks in it."""
    for name, _ in module.named_parameters(recurse=False):
        yield f"{path}.{name}" if path else name
    for name, child in module.named_children():
        at = f"{path}.{name}" if path else name
        blocks = any(isinstance(m, nn.ModuleList) for m in child.modules())
        if isinstance(module, nn.ModuleList) or type(child).__name__ in whole or not blocks:
            yield at
        else:
            yield from _units(child, at, whole)
