"""Encoders of a model beside the tower that has points: a second tower, one of sounds."""

from __future__ import annotations

import torch

from vlm_lens.points.point import Point


def other_encoders(model: torch.nn.Module, blocks: str, points: list[Point]) -> dict[str, str]:
    """Encoders of pictures or sounds beside the one that `vision.*` is of: glob -> reason.

    Args:
        model: The model.
        blocks: Path of the text model's blocks.
        points: The points of tower and projector.
    """
    from transformers import PreTrainedModel

    shown = {p.site.module for p in points} | {blocks}
    found = [
        path for path, m in model.named_modules()
        if path and isinstance(m, PreTrainedModel)
        and any(isinstance(x, torch.nn.Conv1d | torch.nn.Conv2d) for x in m.modules())
        and not any(s == path or s.startswith(f"{path}.") for s in shown)
        and not any(path.startswith(f"{s}.") for s in shown)
    ]  # fmt: skip
    outer = [p for p in found if not any(p.startswith(f"{o}.") for o in found)]
    towers = sorted({p.site.module for p in points if p.name.startswith("vision.blocks.0.")})
    if not towers:
        return {}
    return {
        f"vision.{path.rpartition('.')[2]}.*": (
            f"{path} is an encoder beside the tower; vision.* are points of {towers[0]} and what "
            "stands around it, and this one is not described: reach it by hooks of torch, "
            f"vlm.hf_model.get_submodule({path!r}).register_forward_hook(...)."
        )
        for path in outer
    }
