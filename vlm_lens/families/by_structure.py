"""A model of no registered family, its parts found where transformers' own classes name them.

Nothing is guessed: a part is taken where exactly one module can be it, and where that is not so the
error says what was found and what is missing. Names that fit do not prove that a model computes
what they say (some scale what a block adds): run `vlm_lens.testing.conformance` on it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from vlm_lens.errors import ModelError, PromptError
from vlm_lens.families.decoder import NO_VISION
from vlm_lens.families.parts.architecture import Architecture, assemble, embeddings_of
from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.decoders import BLOCK_FORMS, Decoder, DecoderNames, find_decoder
from vlm_lens.families.parts.picture import Picture
from vlm_lens.families.parts.projected import ProjectedFamily
from vlm_lens.families.parts.stack import BlockParts, Stack
from vlm_lens.families.parts.towers import Tower, describe_tower, image_point
from vlm_lens.layout.layout import ImageSpace
from vlm_lens.points.config import VisionConfig
from vlm_lens.points.point import Point
from vlm_lens.points.sites import InputSite, OutputSite, Site

_WHY = "the geometry of this model's pictures is not described"
_HELP = (
    "Describe the model in a family of its own: a class with `model_types` and "
    "`architecture(model)`, registered by `vlm_lens.families.register`; CONTRIBUTING.md, 'Adding a "
    "family', has the lines."
)


class StructureFamily(ProjectedFamily):
    """One model type, described by what its modules are.

    Args:
        config: The model's config.
    """

    model_types = ()
    not_separable = "the model is not of a registered family"

    def __init__(self, config: Any):
        self.name = f"{config.model_type}, by structure"
        self.takes_images = getattr(config, "vision_config", None) is not None

    def architecture(self, model: torch.nn.Module) -> Architecture:
        """The parts that can be told for certain.

        Raises:
            ModelError: A part that no module, or more than one, can be.
        """
        text_config = model.config.get_text_config(decoder=True)
        path = _path_of(model, model.get_decoder(), "text model")
        decoder = _decoder(model, text_config, path)
        unembed = _path_of(model, model.get_output_embeddings(), "output layer")
        before, missing, vision = [], dict(NO_VISION), None
        merged: Site = InputSite(f"{decoder.stack.path}.0")
        if self.takes_images:
            tower_path, tower = _tower(model)
            vision = _vision_config(model.config.vision_config, tower)
            before = _picture_points(model, tower_path, tower, path, decoder.stack.size.d_model)
            missing = {
                "vision.hook_out": "which of the tower's layers the projector reads is not known; "
                "use projector.hook_in."
            }
            merged = embeddings_of(path)
        return assemble(
            model, self.name, decoder, merged, merged_doc="The language model's input",
            before=before, vision=vision, missing=missing, unembed=unembed,
            image_token_id=_image_token(model.config),
        )  # fmt: skip

    def pictures(self, batch: PictureBatch) -> list[Picture]:
        """Every picture has as many positions as every other; which patch is where is not known.

        Raises:
            PromptError: The image tokens cannot be shared out evenly.
        """
        pixels, count = batch.inputs["pixel_values"], self.count_images(batch.inputs)
        found = sum(map(len, batch.places))
        if pixels.dim() != 4 or found % count:
            raise PromptError(
                f"{found} image tokens cannot be shared out to pictures of shape "
                f"{list(pixels.shape)} without knowing this model. {_HELP}"
            )
        (width, height), patch = batch.frame, batch.vision.patch_size
        n_vision = batch.vision.n_class_tokens + (height // patch) * (width // patch)
        pictures = []
        for number in range(count):
            vision = ImageSpace((), ((number, tuple(range(n_vision))),), _WHY)
            projector = ImageSpace((), ((number, tuple(range(found // count))),), _WHY)
            pictures.append(Picture(found // count, (), vision, projector, _WHY))
        return pictures


def _path_of(model: torch.nn.Module, part: torch.nn.Module | None, what: str) -> str:
    for path, module in model.named_modules():
        if module is part and path:
            return path
    raise ModelError(f"{type(model).__name__} names no {what}. {_HELP}")


def _decoder(model: torch.nn.Module, config: Any, path: str) -> Decoder:
    text = model.get_submodule(path)
    blocks = getattr(text, "layers", None)
    wanted = [n for n in ("layers", "embed_tokens", "norm") if not hasattr(text, n)]
    if wanted or not isinstance(blocks, torch.nn.ModuleList):
        held = ", ".join(n for n, _ in text.named_children())
        raise ModelError(
            f"The text model at {path} ({type(text).__name__}) lacks "
            f"{', '.join(wanted) or 'layers'}; it holds {held}. {_HELP}"
        )
    if getattr(config, "residual_multiplier", 1.0) != 1.0:
        raise ModelError(f"The blocks of {type(text).__name__} scale what they add. {_HELP}")
    forms = [_form(block) for block in blocks]
    if len(set(forms)) > 1:
        raise ModelError(f"The blocks of {type(text).__name__} are not all of one form. {_HELP}")
    return find_decoder(config, path, DecoderNames(forms[0]))


def _form(block: torch.nn.Module) -> BlockParts:
    """The one form whose modules are exactly those of a block."""
    held = {name for name, _ in block.named_modules() if name}
    children = {n for n, m in block.named_children() if not isinstance(m, torch.nn.Dropout)}
    for parts in BLOCK_FORMS:
        top = {parts.ln1, parts.attn, parts.ln2, parts.mlp, parts.attn_out, parts.mlp_out} - {None}
        inner = {f"{parts.attn}.{n}" for n in (parts.q, parts.k, parts.v, parts.o)}
        inner |= {
            f"{parts.mlp}.{n}" for n in (parts.mlp_pre, parts.mlp_post, parts.mlp_linear) if n
        }
        if top == children and inner <= held:
            return parts
    raise ModelError(
        f"A block of this text model ({type(block).__name__}) holds {', '.join(sorted(children))}, "
        f"which is none of the forms known. {_HELP}"
    )


def _tower(model: torch.nn.Module) -> tuple[str, Tower]:
    from transformers import PreTrainedModel

    config = model.config.vision_config
    found = [
        path
        for path, module in model.named_modules()
        if isinstance(module, PreTrainedModel) and module.config is config and path
    ]
    outer = [p for p in found if not any(p.startswith(f"{other}.") for other in found)]
    if len(outer) != 1:
        raise ModelError(
            f"{len(outer)} modules could be the vision tower ({', '.join(outer) or 'none has its '}"
            f"{'' if outer else 'config'}). {_HELP}"
        )
    return outer[0], describe_tower(model.get_submodule(outer[0]), config)


def _vision_config(config: Any, tower: Tower) -> VisionConfig:
    return VisionConfig(
        **asdict(tower.size),
        patch_size=config.patch_size,
        image_size=config.image_size,
        n_class_tokens=tower.n_class_tokens,
        n_layers_read=tower.size.n_layers,
    )


def _picture_points(
    model: torch.nn.Module, tower_path: str, tower: Tower, text_path: str, d_model: int
) -> list[Point]:
    parent = tower_path.rpartition(".")[0]
    beside = {
        f"{parent}.{name}".lstrip("."): child
        for name, child in model.get_submodule(parent).named_children()
        if any(True for _ in child.parameters())
    }
    projectors = [p for p in beside if p not in (tower_path, text_path)]
    if len(projectors) != 1:
        raise ModelError(
            f"{len(projectors)} modules could be the projector ({', '.join(projectors) or 'none'})."
            f" {_HELP}"
        )
    stack = Stack(
        tower.path(tower_path, tower.layers), tower.parts, tower.size, prefix="vision.",
        space="vision", sites=tower.sites,
    )  # fmt: skip
    embed = OutputSite(tower.path(tower_path, tower.embed))
    read, given = InputSite(projectors[0]), OutputSite(projectors[0])
    return [
        image_point("vision.hook_embed", tower.size.d_model, tower.embed_doc, embed),
        *stack.points(),
        image_point("projector.hook_in", tower.size.d_model, "What the projector reads", read,
                    space="projector"),
        image_point("projector.hook_out", d_model, "Picture features in the language model's width",
                    given, space="projector", axis="d_model"),
    ]  # fmt: skip


def _image_token(config: Any) -> int | None:
    for name in ("image_token_id", "image_token_index"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    return None
