"""Tower and projector as names and configs tell them, where no picture can be run cheaply."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vlm_lens.errors import ModelError
from vlm_lens.families.parts.found import HELP
from vlm_lens.families.parts.found_tower import blocks_read
from vlm_lens.families.parts.towers import describe_tower, layers_read
from vlm_lens.families.parts.views import RowsOfPicturesView
from vlm_lens.points.config import VisionConfig
from vlm_lens.points.point import Point
from vlm_lens.points.sites import InputSite, OutputSite

NO_OUT = "which of the tower's layers the projector reads is not known; use projector.hook_in."


def named_tower(
    model: torch.nn.Module, blocks: str, d_model: int
) -> tuple[list[Point], dict[str, str], VisionConfig | None] | None:
    """Points of tower and projector that names and configs tell; `None` where they do not.

    Args:
        model: The model.
        blocks: Path of the text model's blocks.
        d_model: The width of what stands in the text.
    """
    try:
        path = _tower_path(model)
    except ModelError:
        return None
    config = model.config.vision_config
    tower = describe_tower(model.get_submodule(path), config)
    if tower.parts is None:
        return None
    n_layers = tower.size.n_layers
    n_read = max(layers_read(model.config, n_layers))
    stack = tower.stack(path, n_read)
    proved = blocks_read(model, config, blocks, stack.path, n_layers)
    if proved is not None and proved != n_read:
        n_read, stack = proved, tower.stack(path, proved)
    points, missing = list(tower.points(path, stack)), tower.missing(stack)
    missing.setdefault("vision.hook_out", NO_OUT)
    try:
        points += _projector_points(model, path, blocks, d_model)
    except ModelError as error:
        missing["projector.*"] = _told(error)
    return points, missing, tower.config(config, n_read)


def untold(model: torch.nn.Module) -> str:
    """Why nothing is known of a tower.

    Args:
        model: The model.
    """
    try:
        path = _tower_path(model)
    except ModelError as error:
        return _told(error)
    return (
        f"{path} is of a type that is not described, and no small picture was found that the model "
        "reads on this device, which would show its parts."
    )


def _told(error: ModelError) -> str:
    return str(error).replace(HELP, "").strip()


def _tower_path(model: torch.nn.Module) -> str:
    """The one module that has the model's vision config.

    Raises:
        ModelError: Several, or none.
    """
    from transformers import PreTrainedModel

    config = getattr(model.config, "vision_config", None)
    found = [
        path
        for path, module in model.named_modules()
        if config is not None and isinstance(module, PreTrainedModel)
        and module.config is config and path
    ]  # fmt: skip
    outer = [p for p in found if not any(p.startswith(f"{other}.") for other in found)]
    if len(outer) != 1:
        held = ", ".join(outer) or "none has its config"
        raise ModelError(f"{len(outer)} modules could be the vision tower ({held}).")
    return outer[0]


def _projector_points(
    model: torch.nn.Module, tower: str, blocks: str, d_model: int
) -> Iterator[Point]:
    """What enters and what leaves the one module beside tower and text model.

    Raises:
        ModelError: Several, or none.
    """
    parent = tower.rpartition(".")[0]
    beside = [
        f"{parent}.{name}".lstrip(".")
        for name, child in model.get_submodule(parent).named_children()
        if any(True for _ in child.parameters())
    ]
    projectors = [
        p for p in beside
        if p != tower and not blocks.startswith(f"{p}.") and not p.endswith("lm_head")
        and not isinstance(model.get_submodule(p), torch.nn.Embedding)
    ]  # fmt: skip
    if len(projectors) != 1:
        raise ModelError(
            f"{len(projectors)} modules could be the projector ({', '.join(projectors) or 'none'})."
        )
    read = InputSite(projectors[0], view=RowsOfPicturesView())
    given = OutputSite(projectors[0], view=RowsOfPicturesView(d_model))
    yield Point("projector.hook_in", ("image", "pos", "d_vision"), (None, None, None),
                "What the projector reads", read, "projector")  # fmt: skip
    yield Point("projector.hook_out", ("image", "pos", "d_model"), (None, None, d_model),
                "Picture features in the language model's width", given, "projector")  # fmt: skip
