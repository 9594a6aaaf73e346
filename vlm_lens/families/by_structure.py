"""A model of no registered family: what transformers' own classes name, and what a run shows.

The text model is found and proved in one tiny forward (`parts/found.py`); tower and projector are
taken where exactly one module can be it. What is not certain is declared missing, with what was
found; `vlm_lens.testing.conformance` says whether all that is there holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from vlm_lens.errors import ModelError, PromptError
from vlm_lens.families.decoder import NO_VISION
from vlm_lens.families.parts.architecture import Architecture, assemble
from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.family import Family
from vlm_lens.families.parts.found import HELP, found_decoder
from vlm_lens.families.parts.picture import Picture, runs_of
from vlm_lens.families.parts.towers import describe_tower, layers_read
from vlm_lens.families.parts.views import RowsOfPicturesView
from vlm_lens.layout.layout import ImageSpace
from vlm_lens.points.config import VisionConfig
from vlm_lens.points.point import Point
from vlm_lens.points.sites import InputSite, OutputSite

_NO_OUT = "which of the tower's layers the projector reads is not known; use projector.hook_in."
_WHY = "the geometry of this model's pictures is not described"


class StructureFamily(Family):
    """One model type, described by what its modules are and do.

    Args:
        config: The model's config.
    """

    model_types = ()
    not_separable = "the model is not of a registered family"

    def __init__(self, config: Any):
        self.name = f"{config.model_type}, by structure"
        self.takes_images = any(
            getattr(config, name, None) is not None for name in ("vision_config", "vq_config")
        )

    def architecture(self, model: torch.nn.Module) -> Architecture:
        """The parts that can be told for certain.

        Raises:
            ModelError: A text model that cannot be told for certain.
        """
        found = found_decoder(model)
        self.residual_breaks = found.residual_breaks
        self.adds_between_blocks = bool(found.residual_breaks)
        self.adds_positions = found.adds_positions
        stack = found.decoder.stack
        before: list[Point] = []
        missing, vision = dict(NO_VISION), None
        if self.takes_images:
            before, missing, vision = self._pictured(model, stack.path, stack.size.d_model)
        first = f"{stack.path}.0"
        site = found.decoder.first_input
        return assemble(
            model, self.name, found.decoder, site or InputSite(first), before=before,
            merged_doc="What the first block reads", vision=vision, missing=missing,
            unembed=found.unembed, image_token_id=_image_token(model.config),
        )  # fmt: skip

    def _pictured(
        self, model: torch.nn.Module, blocks: str, d_model: int
    ) -> tuple[list[Point], dict[str, str], VisionConfig | None]:
        """The points of tower and projector, what is missing of them, and the tower's sizes."""
        try:
            path = _tower_path(model)
            config = model.config.vision_config
            tower = describe_tower(model.get_submodule(path), config)
        except ModelError as error:
            return [], dict.fromkeys(("vision.*", "projector.*"), _told(error)), None
        n_read = max(layers_read(model.config, tower.size.n_layers))
        stack = tower.stack(path, n_read)
        points, missing = list(tower.points(path, stack)), tower.missing(stack)
        missing.setdefault("vision.hook_out", _NO_OUT)
        try:
            points += _projector_points(model, path, blocks, d_model)
        except ModelError as error:
            missing["projector.*"] = _told(error)
        return points, missing, tower.config(config, n_read)

    def pictures(self, batch: PictureBatch) -> list[Picture]:
        """Each picture's image tokens; which patch is where is not known.

        Raises:
            PromptError: It cannot be told which image tokens belong to which picture.
        """
        n_rows = len(batch.inputs["pixel_values"])
        counts = _tokens_by_picture(batch, n_rows)
        pictures = []
        for number, n_tokens in enumerate(counts):
            nowhere = ImageSpace((), (), _WHY)
            vision = projector = nowhere
            if n_rows == len(counts):
                projector = ImageSpace((), ((number, tuple(range(n_tokens))),), _WHY)
                vision_config = batch.arch.cfg.vision
                four = batch.inputs["pixel_values"].dim() == 4
                if four and vision_config and vision_config.patch_size:
                    (width, height), patch = batch.frame, batch.vision.patch_size
                    n = batch.vision.n_class_tokens + (height // patch) * (width // patch)
                    vision = ImageSpace((), ((number, tuple(range(n))),), _WHY)
            pictures.append(Picture(n_tokens, (), vision, projector, _WHY))
        return pictures


def _tokens_by_picture(batch: PictureBatch, n_rows: int) -> list[int]:
    """How many image tokens each picture has.

    A picture is a run of image tokens, or several where marks stand within it; pictures that follow
    each other without a mark are told apart where all take the same number.
    """
    runs = [len(run) for places in batch.places for run in runs_of(places)]
    total, n = sum(runs), len(runs) if batch.sizes is None else len(batch.sizes)
    if n == len(runs) or not runs:
        return runs
    if n_rows == n and total % n == 0:
        return [total // n] * n
    if len(runs) % n == 0 and len({*batch.sizes}) == 1:
        each = len(runs) // n
        return [sum(runs[i * each : (i + 1) * each]) for i in range(n)]
    raise PromptError(
        f"{total} image tokens in {len(runs)} runs cannot be shared out to {n} pictures without "
        f"knowing this model. {HELP}"
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


def _image_token(config: Any) -> int | None:
    for name in ("image_token_id", "image_token_index"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    return None
