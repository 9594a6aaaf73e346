"""Where a model takes its tokens."""

from __future__ import annotations

import torch


def input_device(model: torch.nn.Module) -> torch.device:
    """The device on which a model's token embedding computes.

    Weights that accelerate keeps on the CPU or on disk are on the meta device between two calls;
    the hook that fetches them says where to.
    """
    embedding = model.get_input_embeddings()
    device = embedding.weight.device
    if device.type != "meta":
        return device
    fetching = getattr(embedding, "_hf_hook", None)
    where = getattr(fetching, "execution_device", None)
    return model.device if where is None else torch.device(where)
