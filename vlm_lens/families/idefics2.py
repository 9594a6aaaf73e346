"""Idefics2: a SigLIP tower at any size, a perceiver that makes 64 latents a picture, a Mistral."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from vlm_lens.errors import PromptError
from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.idefics_frames import IdeficsFamily, real_frames
from vlm_lens.families.parts.picture import Picture
from vlm_lens.families.parts.pixels import Size
from vlm_lens.families.parts.stack import BlockParts, Stack
from vlm_lens.families.parts.towers import image_point
from vlm_lens.layout.geometry import PatchGrid, PixelMap
from vlm_lens.layout.pictures import ImageSpace
from vlm_lens.points.config import StackConfig
from vlm_lens.points.point import Point
from vlm_lens.points.sites import InputSite, OutputSite

_PERCEIVER = BlockParts(
    ln1="input_latents_norm", attn="self_attn", q="q_proj", k="k_proj", v="v_proj", o="o_proj",
    ln2="post_attention_layernorm", mlp="mlp", mlp_pre="gate_proj", mlp_linear="up_proj",
    mlp_post="down_proj",
)  # fmt: skip
_NO_GRID = (
    "The resampler mixes all patches of a picture into every latent; "
    "vlm_lens.reading.resampled tells how much each latent reads of each patch"
)
_SPLIT = 5  # four quarters, then the whole


class Idefics2Family(IdeficsFamily):
    """`Idefics2ForConditionalGeneration`.

    With `processor.image_processor.do_image_splitting` a picture is read as four quarters and as a
    whole, 5 x 64 positions; without it, as a whole only.
    """

    name = "idefics2"
    model_types = ("idefics2",)

    def projector_points(self, config: Any, d_in: int) -> list[Point]:
        """The resampler's blocks too, as `projector.blocks.*`."""
        size = _perceiver_size(config.perceiver_config)
        resampler = f"{self.projector_path}.perceiver_resampler"
        blocks = Stack(
            f"{resampler}.layers", _PERCEIVER, size, "projector.", "projector",
            sites={"hook_resid_pre": lambda block: InputSite(block, keyword="latents")},
        )  # fmt: skip
        context = image_point(
            "projector.hook_context", size.d_model,
            "What the resampler reads: patches in the language model's width",
            InputSite(resampler, keyword="context"), axis="d_model",
        )  # fmt: skip
        entering, leaving = super().projector_points(config, d_in)
        return [entering, context, *_resampler_points(blocks), leaving]

    def process(
        self, processor: Any, texts: list[str], pictures: list[list[Image.Image]], **options: Any
    ) -> Mapping[str, Any]:
        """Calls the processor with one list of pictures a text.

        Raises:
            PromptError: A picture too small to be cut into four.
        """
        small = [p.size for row in pictures for p in row if min(p.size) < 2]
        if small and _splits(processor):
            raise PromptError(
                f"A picture of {small[0][0]} x {small[0][1]} pixels cannot be cut into four: "
                "set processor.image_processor.do_image_splitting = False, or enlarge it."
            )
        return super().process(processor, texts, pictures, **options)

    def pictures(self, batch: PictureBatch) -> list[Picture]:
        """Patches have places in the tower; latents have none."""
        pixels, sizes = batch.inputs["pixel_values"], batch.sizes
        real = real_frames(pixels)
        masks = batch.inputs.get("pixel_attention_mask")
        masks = torch.ones_like(pixels[:, :, 0]) if masks is None else masks
        frames = [(int(m[0].sum()), int(m[:, 0].sum())) for m in masks[real]]
        each = len(frames) // len(sizes) if sizes else _SPLIT if _splits(batch.processor) else 1
        if len(frames) % each:
            raise PromptError(
                f"With do_image_splitting a picture is {each} frames; there are {len(frames)}."
            )
        n_latents = batch.config.perceiver_config.resampler_n_latents
        patch = batch.vision.patch_size
        columns = pixels.shape[-1] // patch  # the tower's sequence is as wide as the padded frame
        pictures = []
        for start in range(0, len(frames), each):
            numbers = range(start, start + each)
            size = sizes[start // each] if sizes else None
            vision = _in_tower(numbers, [frames[n] for n in numbers], patch, columns, size)
            latents = tuple((n, tuple(range(n_latents))) for n in numbers)
            projector = ImageSpace((), latents, _NO_GRID)
            pictures.append(Picture(each * n_latents, (), vision, projector, _NO_GRID))
        return pictures


def _splits(processor: Any) -> bool:
    image_processor = getattr(processor, "image_processor", None)
    return bool(getattr(image_processor, "do_image_splitting", False))


def _in_tower(
    numbers: Sequence[int], frames: Sequence[Size], patch: int, columns: int, size: Size | None
) -> ImageSpace:
    """The patches of one picture, the view of the whole first.

    Args:
        numbers: Numbers of its frames in the batch.
        frames: Their widths and heights, padding left out.
        patch: Side of a patch.
        columns: Patches from one row to the next in the tower's sequence.
        size: Width and height of the picture as given; without it only the whole has a map.
    """
    whole = size or frames[-1]
    quarters = _quarters(*size) if size and len(frames) > 1 else [None] * (len(frames) - 1)
    grids, sequences = [], []
    for number, frame, box in zip(numbers, frames, (*quarters, (0, 0, *whole)), strict=True):
        cols, rows = (side // patch for side in frame)  # the model masks patches that are cut off
        positions = tuple(r * columns + c for r in range(rows) for c in range(cols))
        sequences.append((number, positions))
        if box is not None:
            pixels = _map(whole, box, frame, (cols * patch, rows * patch))
            grids.append(PatchGrid(rows, cols, positions, number, pixels))
    return ImageSpace((grids[-1], *grids[:-1]), tuple(sequences))


def _quarters(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """The boxes of the four quarters of a picture, as the processor cuts them."""
    x, y = width // 2, height // 2
    return [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]


def _map(picture: Size, box: tuple[int, int, int, int], resized: Size, frame: Size) -> PixelMap:
    """The map of a box of the picture, resized, of which the frame is the top left."""
    scale = (resized[0] / (box[2] - box[0]), resized[1] / (box[3] - box[1]))
    return PixelMap(picture, frame, scale, (-box[0] * scale[0], -box[1] * scale[1]))


def _perceiver_size(config: Any) -> StackConfig:
    return StackConfig(
        n_layers=config.resampler_depth,
        d_model=config.hidden_size,
        n_heads=config.resampler_n_heads,
        n_key_value_heads=config.num_key_value_heads,
        d_head=config.resampler_head_dim,
        d_mlp=4 * config.hidden_size,
    )


def _resampler_points(stack: Stack) -> Iterator[Point]:
    """The points of the perceiver's blocks: queries are latents, keys are patches and latents."""
    for point in stack.points():
        if point.name.endswith(("attn.hook_k", "attn.hook_v")):
            doc = f"{point.doc}: the tower's patches, then the latents"
            point = replace(point, doc=doc, space="vision")
        yield point
        if point.name.endswith("ln1.hook_normalized"):
            yield image_point(
                f"projector.blocks.{point.layer}.ln_context.hook_normalized",
                stack.size.d_model,
                "The patches that attention reads, normed",
                OutputSite(f"{stack.path}.{point.layer}.input_context_norm"),
                axis="d_model",
            )
