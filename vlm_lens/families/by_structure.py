"""A model of no registered family, its parts found where transformers' own classes name them.

Nothing is guessed: a part is taken where exactly one module can be it, and where that is not so the
error says what was found and what is missing. Names that fit do not prove that a model computes
what they say (some scale what a block adds): run `vlm_lens.testing.conformance` on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from vlm_lens.errors import ModelError, PromptError
from vlm_lens.families.base import Architecture, BlockParts, Stack
from vlm_lens.families.parts.decoders import (
    BLOCK_FORMS,
    NO_VISION,
    Decoder,
    DecoderNames,
    find_decoder,
    text_point,
)
from vlm_lens.families.parts.projected import Picture, ProjectedFamily
from vlm_lens.families.parts.towers import Tower, describe_tower, image_point
from vlm_lens.layout.layout import ImageLayout, ImageSpace
from vlm_lens.points.config import HookedConfig, VisionConfig
from vlm_lens.points.point import Point
from vlm_lens.points.sites import InputSite, OutputSite
from vlm_lens.points.table import PointTable

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
        size, d_vocab = decoder.stack.size, text_config.vocab_size
        points: list[Point] = [decoder.embedding_point()]
        missing, vision = dict(decoder.stack.missing()), None
        if self.takes_images:
            tower_path, tower = _tower(model)
            vision = _vision_config(model.config.vision_config, tower)
            points += _picture_points(model, tower_path, tower, path, size.d_model)
            missing["vision.hook_out"] = (
                "which of the tower's layers the projector reads is not known; use "
                "projector.hook_in."
            )
            merged = InputSite(path, keyword="inputs_embeds", index=4)
        else:
            missing |= {"vision.*": NO_VISION, "projector.*": NO_VISION}
            merged = InputSite(f"{decoder.stack.path}.0")
        points += [
            text_point("hook_merged", size.d_model, "The language model's input", merged),
            *decoder.stack.points(),
            *decoder.closing_points(d_vocab),
        ]
        cfg = HookedConfig(
            model_name=model.config.name_or_path or type(model).__name__,
            family=self.name,
            d_vocab=d_vocab,
            vision=vision,
            **asdict(size),
        )
        return Architecture(
            cfg, PointTable(points, missing), decoder, unembed, _image_token(model.config)
        )

    def image_layouts(
        self, model: torch.nn.Module, arch: Architecture, inputs: Mapping[str, Tensor], **known: Any
    ) -> list[list[ImageLayout]]:
        """Where the pictures stand; nowhere in a language model."""
        if not self.takes_images:
            return [[] for _ in inputs["input_ids"]]
        return super().image_layouts(model, arch, inputs, **known)

    def pictures(
        self,
        model: torch.nn.Module,
        arch: Architecture,
        inputs: Mapping[str, Tensor],
        processor: Any,
        sizes: Sequence[tuple[int, int]] | None,
    ) -> list[Picture]:
        """Every picture has as many positions as every other; which patch is where is not known.

        Raises:
            PromptError: The image tokens cannot be shared out evenly.
        """
        count = self.count_images(inputs)
        found = int((inputs["input_ids"] == arch.image_token_id).sum())
        if inputs["pixel_values"].dim() != 4 or found % count:
            raise PromptError(
                f"{found} image tokens cannot be shared out to pictures of shape "
                f"{list(inputs['pixel_values'].shape)} without knowing this model. {_HELP}"
            )
        n_vision = arch.cfg.vision.n_class_tokens + _n_patches(inputs, arch.cfg.vision)
        pictures = []
        for number in range(count):
            vision = ImageSpace((), ((number, tuple(range(n_vision))),), _WHY)
            projector = ImageSpace((), ((number, tuple(range(found // count))),), _WHY)
            pictures.append(Picture(found // count, (), vision, projector, _WHY))
        return pictures


def _n_patches(inputs: Mapping[str, Tensor], vision: VisionConfig) -> int:
    height, width = inputs["pixel_values"].shape[-2:]
    return (height // vision.patch_size) * (width // vision.patch_size)


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
