"""How many variants may run together."""

from __future__ import annotations

import torch
from torch import nn

from vlm_lens.engine.baseline import Baseline
from vlm_lens.engine.tower import TowerStart
from vlm_lens.points.placement import devices_of

_SHARE = 0.25  # of what is free, at the most
# More together is no faster. A CPU's caches and its allocator, which takes large blocks fresh from
# the kernel each time, make it slower; a GPU is busy by then.
_CEILING = {"cpu": 256 << 20, "cuda": 4 << 30}


def free_bytes(model: nn.Module) -> int:
    """How many bytes variants that run together may take, if the user does not say.

    Of a model over several devices they take as much on each, as keys and values of its blocks lie
    there: the one with the least memory decides.
    """
    return min(map(_free, devices_of(model)), default=_free(torch.device("cpu")))


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return min(int(torch.cuda.mem_get_info(device)[0] * _SHARE), _CEILING["cuda"])
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        available = 4 << 30
    return min(int(available * _SHARE), _CEILING["cpu"])


def row_bytes(
    baseline: Baseline, width: int, tower: TowerStart | None = None, *, keep_cache: bool
) -> int:
    """About how many bytes one variant needs while it runs, for all rows of the prompt.

    Args:
        baseline: The recorded run.
        width: How many positions of the language model it computes.
        tower: What it does before the language model, if anything.
        keep_cache: Whether its keys and values are kept.
    """
    size = baseline.arch.decoder.stack.size
    item = baseline.resid_pre[0].element_size()
    keys = 2 * size.n_key_value_heads * size.d_head * baseline.length
    widest = width * (4 * size.d_model + 3 * size.d_mlp)
    scores = size.n_heads * width * baseline.length
    logits = 4 * baseline.arch.cfg.d_vocab
    kept = keys * size.n_layers if keep_cache else 0
    in_tower = 0
    if tower is not None and (vision := baseline.arch.cfg.vision) is not None:
        layouts = [baseline.tower.pictures.shown[n].layout for n in tower.pictures]
        patches = sum(len(ps) for layout in layouts for _, ps in layout.vision.sequences)
        in_tower = patches * (4 * vision.d_model + 3 * vision.d_mlp)
    return item * (baseline.n_rows * (3 * keys + widest + scores + logits + kept) + in_tower)
