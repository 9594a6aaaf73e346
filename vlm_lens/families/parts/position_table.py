"""How many positions a text model can number, where it looks them up in a table."""

from __future__ import annotations

from collections.abc import Iterator
from os.path import commonprefix  # of lists, too
from typing import Any

from torch import nn

from vlm_lens.points.sites import submodule

# Tables that transformers keeps as tensors, not as an embedding; none of them grows.
_BUFFERS = ("embed_positions", "pos_encoding")
# Types whose attention is given distances up to a length that their config says.
_DISTANCES = {"mpt": "max_seq_len"}
_EXTRA_ROWS = 8  # before or after the positions: 2 in OPT, which begins at 2


def table_of_positions(model: nn.Module, embed: str, blocks: str) -> int | None:
    """The number of positions that a text model has a row for; `None` where it counts on.

    Rotary and sinusoidal positions are computed for any length. A table, learned (GPT-2, OPT) or
    fixed (GPT-J), ends: beyond it the model fails.

    Args:
        model: The model.
        embed: Path of its token embedding.
        blocks: Path of its list of blocks.
    """
    config: Any = model.config
    text = config.get_text_config(decoder=True)
    if text.model_type in _DISTANCES:
        return getattr(text, _DISTANCES[text.model_type])
    most = getattr(text, "max_position_embeddings", None)
    if not isinstance(most, int) or most < 1:
        return None
    return most if most in _rows(model, embed, blocks, most) else None


def _rows(model: nn.Module, embed: str, blocks: str, most: int) -> Iterator[int]:
    """The sizes of tables of the text model; of an embedding, less the rows that are none's."""
    inside = submodule(model, ".".join(commonprefix([embed.split("."), blocks.split(".")])))
    token = submodule(model, embed)
    for module in inside.modules():
        if isinstance(module, nn.Embedding) and module is not token:
            yield most if most <= module.num_embeddings <= most + _EXTRA_ROWS else 0
        for name in _BUFFERS:
            table = getattr(module, name, None)
            if not isinstance(table, nn.Module) and getattr(table, "ndim", 0) == 2:
                yield len(table)
