"""LLaVA: a CLIP or SigLIP tower, an MLP projector, a decoder; patches stand in the text stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from vlm_lens.config import HookedConfig, VisionConfig
from vlm_lens.errors import PromptError
from vlm_lens.families.base import Architecture, Family, Stack
from vlm_lens.families.decoders import find_decoder, text_point
from vlm_lens.families.pixels import identity_map, resize_and_crop_map
from vlm_lens.families.towers import Tower, describe_tower
from vlm_lens.geometry import PatchGrid
from vlm_lens.layout import ImageLayout, ImageSpace
from vlm_lens.points import Point, PointTable
from vlm_lens.sites import InputSite, OutputSite

_TOWER, _PROJECTOR, _TEXT = (
    "model.vision_tower",
    "model.multi_modal_projector",
    "model.language_model",
)


class LlavaFamily(Family):
    """`LlavaForConditionalGeneration`."""

    name = "llava"
    model_types = ("llava",)
    takes_images = True

    def architecture(self, model: torch.nn.Module) -> Architecture:
        """The parts of a LLaVA.

        `vision_feature_layer` says which hidden state the projector reads: for LLaVA-1.5 that is
        -2, the last block but one, so that the last block runs without being read.
        """
        config = model.config
        tower = describe_tower(model.model.vision_tower, config.vision_config)
        read = _layers_read(config)
        n_read = max(read)
        decoder = find_decoder(config.text_config, _TEXT)
        text = decoder.stack
        d_vocab = config.text_config.vocab_size
        vision = Stack(
            tower.path(_TOWER, "encoder.layers"),
            tower.parts,
            tower.size,
            prefix="vision.",
            space="vision",
            unread_from=n_read,
            unread=f"the projector reads block {n_read - 1}, so nothing reads this one",
        )
        points = [
            decoder.embedding_point(),
            *_vision_points(vision, tower, read),
            *_projector_points(text.size.d_model, tower.size.d_model * len(read)),
            text_point("hook_merged", text.size.d_model, "The language model's input: embeddings "
                       "with picture features in their places",
                       InputSite(_TEXT, keyword="inputs_embeds", index=4)),
            *text.points(),
            *decoder.closing_points(d_vocab),
        ]  # fmt: skip
        missing = {**text.missing(), **vision.missing()}
        if len(read) > 1:
            missing["vision.hook_out"] = (
                f"its projector reads several layers at once ({config.vision_feature_layer}); "
                "use projector.hook_in."
            )
        cfg = HookedConfig(
            model_name=config.name_or_path or type(model).__name__,
            family=self.name,
            d_vocab=d_vocab,
            vision=VisionConfig(
                **asdict(tower.size),
                patch_size=config.vision_config.patch_size,
                image_size=config.vision_config.image_size,
                n_class_tokens=tower.n_class_tokens,
                n_layers_read=n_read,
            ),
            **asdict(text.size),
        )
        return Architecture(
            cfg, PointTable(points, missing), decoder, "lm_head", config.image_token_id
        )

    def placeholder(self, processor: Any) -> str:
        """The processor's image token."""
        return processor.image_token

    def count_images(self, inputs: Mapping[str, Tensor]) -> int:
        """One row of `pixel_values` a picture."""
        pixels = inputs.get("pixel_values")
        return 0 if pixels is None else len(pixels)

    def image_layouts(
        self,
        model: torch.nn.Module,
        arch: Architecture,
        inputs: Mapping[str, Tensor],
        *,
        processor: Any = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[list[ImageLayout]]:
        """Every picture has the same number of patches; they stand in the text row by row."""
        image_token = inputs["input_ids"] == arch.image_token_id
        n_images = self.count_images(inputs)
        if not n_images:
            if image_token.any():
                raise PromptError(
                    f"The prompt holds {int(image_token.sum())} image tokens but no pixel_values: "
                    "give the pictures, vlm.prompt(text, images=[...])."
                )
            return [[] for _ in image_token]
        height, width = inputs["pixel_values"].shape[-2:]
        vision = arch.cfg.vision
        rows, cols = height // vision.patch_size, width // vision.patch_size
        dropped = 1 if model.config.vision_feature_select_strategy == "default" else 0
        sequence = vision.n_class_tokens + rows * cols
        per_image = sequence - dropped
        expected, found = n_images * per_image, int(image_token.sum())
        if expected != found or any(int(r.sum()) % per_image for r in image_token):
            raise PromptError(
                f"{n_images} picture(s) of {per_image} patches need {expected} image tokens; the "
                f"prompt holds {found}. Write one <image> for each picture."
            )
        before = vision.n_class_tokens - dropped  # class token kept in front of the patches
        layouts, number = [], 0
        for row, marks in enumerate(image_token):
            positions = marks.nonzero().flatten().tolist()
            images = []
            for start in range(0, len(positions), per_image):
                mine = positions[start : start + per_image]
                frame = (width, height)
                pixels = identity_map(frame)
                if sizes is not None and processor is not None:
                    pixels = resize_and_crop_map(processor.image_processor, sizes[number], frame)

                def space(sequence: Sequence[int], skip: int, row: int, pixels=pixels):
                    sequences = ((row, tuple(sequence)),)
                    if skip < 0:
                        why = "This model drops a patch as if it were a class token"
                        return ImageSpace((), sequences, why)
                    grid = PatchGrid(rows, cols, tuple(sequence[skip:]), row, pixels)
                    return ImageSpace((grid,), sequences)

                images.append(
                    ImageLayout(
                        index=len(images),
                        text=space(mine, before, row),
                        vision=space(range(sequence), vision.n_class_tokens, number),
                        projector=space(range(per_image), before, number),
                    )
                )
                number += 1
            layouts.append(images)
        return layouts


def _layers_read(config: Any) -> list[int]:
    """Which hidden states the projector reads, counted from 0 for the first block's input."""
    layers = config.vision_feature_layer
    total = config.vision_config.num_hidden_layers + 1
    return [i % total for i in ([layers] if isinstance(layers, int) else layers)]


def _vision_points(stack: Stack, tower: Tower, read: Sequence[int]) -> list[Point]:
    def point(name: str, doc: str, site: InputSite | OutputSite) -> Point:
        axes, sizes = ("image", "pos", "d_vision"), (None, None, stack.size.d_model)
        return Point(f"vision.{name}", axes, sizes, doc, site, "vision")

    points = [
        point("hook_embed", "Patch embeddings with positions",
              OutputSite(tower.path(_TOWER, "embeddings"))),
        *stack.points(),
    ]  # fmt: skip
    if len(read) == 1:
        hidden = OutputSite(_TOWER, path=("hidden_states", read[0]))
        points.append(point("hook_out", "The tower's features that the projector reads", hidden))
    return points


def _projector_points(d_model: int, d_in: int) -> list[Point]:
    def point(name: str, axis: str, width: int, doc: str, site: InputSite | OutputSite) -> Point:
        axes, sizes = ("image", "pos", axis), (None, None, width)
        return Point(f"projector.{name}", axes, sizes, doc, site, "projector")

    return [
        point("hook_in", "d_vision", d_in, "What the projector reads: one row a patch",
              InputSite(_PROJECTOR, keyword="image_features")),
        point("hook_out", "d_model", d_model, "Picture features in the language model's width",
              OutputSite(_PROJECTOR)),
    ]  # fmt: skip
