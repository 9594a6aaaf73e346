"""What Qwen-VL and its kin share: a tower over one long sequence, and a merger of square blocks.

The tower reads the patches of all pictures of a batch as one sequence without an axis of rows, and
attends in chunks, one a picture or a window. Patches that will be merged stand side by side in it.
The merger makes one vector of each block of patches; pictures keep their own shape.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from vlm_lens.errors import PromptError
from vlm_lens.families.parts.architecture import Architecture, assemble, embeddings_of
from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.family import Family
from vlm_lens.families.parts.found import text_model
from vlm_lens.families.parts.picture import Brackets, Picture, grid, packed_space
from vlm_lens.families.parts.selection import by_stretches
from vlm_lens.families.parts.stack import BlockParts, SiteMaker, Stack, in_one_row
from vlm_lens.layout.pictures import ImageLayout
from vlm_lens.points.config import StackConfig, VisionConfig
from vlm_lens.points.point import Point
from vlm_lens.points.sites import AttentionSite, FusedHeadView, InputSite, OutputSite, Site

TOWER, TEXT = "model.visual", "model.language_model"


class PatchMergingFamily(Family):
    """A family with such a tower.

    Attributes:
        tower_parts: The names within a block of the tower; queries, keys and values come from one
            layer, `attn.qkv`.
        tower_reads: What the merger reads.
        marks: Names, in the config, of the tokens that open and close a picture in the text; they
            belong to it, but to no patch.
    """

    takes_images = True
    not_separable = ""
    tower_parts: BlockParts
    tower_reads: Site = InputSite(f"{TOWER}.merger", keyword="x")
    marks: tuple[str, str] = ("vision_start_token_id", "vision_end_token_id")

    @abstractmethod
    def tower_width(self, config: Any) -> tuple[int, int]:
        """Widths of the tower's residual stream and of its MLP, from its config."""

    def merged_order(self, config: Any, grids: Tensor) -> Tensor:
        """Place in the tower's sequence of each merged block, blocks in reading order.

        Args:
            config: The tower's config.
            grids: Frames, rows and columns of patches of each picture, `[pictures, 3]`.
        """
        return torch.arange(int(grids.prod(-1).sum()) // config.spatial_merge_size**2)

    def more_points(self, d_model: int, config: Any) -> list[Point]:
        """Points between the tower and the text model that others do not have."""
        return []

    def architecture(self, model: torch.nn.Module) -> Architecture:
        """The parts of a model."""
        config, tower = model.config, model.config.vision_config
        decoder = text_model(model, TEXT)
        d_model, vision = decoder.stack.size.d_model, self._tower(tower)
        before = [
            _point("vision.hook_embed", "d_vision", vision.size.d_model, "Patch embeddings as the "
                   "first block reads them", InputSite(f"{vision.path}.0"), "vision"),
            *vision.points(),
            _point("vision.hook_out", "d_vision", vision.size.d_model,
                   "The tower's features that the projector reads", self.tower_reads, "vision"),
            _point("projector.hook_in", "d_vision", vision.size.d_model, "What the projector "
                   "reads: one row a patch, in the tower's order", self.tower_reads, "vision"),
            *self.more_points(d_model, tower),
            _point("projector.hook_out", "d_model", d_model, "Picture features in the "
                   "language model's width: one row a block of patches",
                   OutputSite(TOWER, path=("pooler_output",)), "projector"),
        ]  # fmt: skip
        return assemble(
            model, self.name, decoder, decoder.first_input or embeddings_of(TEXT), before=before,
            vision=VisionConfig(
                **asdict(vision.size),
                patch_size=tower.patch_size,
                image_size=None,
                n_class_tokens=0,
                n_layers_read=vision.size.n_layers,
            ),
            missing=vision.missing(), image_token_id=config.image_token_id,
        )  # fmt: skip

    def _tower(self, config: Any) -> Stack:
        d_model, d_mlp = self.tower_width(config)
        n_heads = config.num_heads
        d_head = d_model // n_heads
        size = StackConfig(config.depth, d_model, n_heads, n_heads, d_head, d_mlp)

        def fused(part: int) -> SiteMaker:
            view = FusedHeadView(n_heads, d_head, part)
            return lambda block: OutputSite(f"{block}.attn.qkv", view=view)

        def attention(stage: str) -> SiteMaker:
            return lambda block: AttentionSite(f"{block}.attn", stage, joined=f"{block}.attn.proj")

        return Stack(
            f"{TOWER}.blocks",
            self.tower_parts,
            size,
            prefix="vision.",
            space="vision",
            single=True,
            sites={
                "attn.hook_q": fused(0),
                "attn.hook_k": fused(1),
                "attn.hook_v": fused(2),
                "attn.hook_attn_scores": attention("scores"),
                "attn.hook_pattern": attention("pattern"),
            },
        )

    def placeholder(self, processor: Any) -> str:
        """The processor's image token between the marks of a picture's start and end."""
        return f"<|vision_start|>{processor.image_token}<|vision_end|>"

    def video_placeholder(self, processor: Any) -> str:
        """The processor's video token between the marks of a picture's start and end."""
        return self.placeholder(processor).replace(processor.image_token, processor.video_token)

    def count_images(self, inputs: Mapping[str, Tensor]) -> int:
        """One row of `image_grid_thw` a picture."""
        grids = inputs.get("image_grid_thw")
        return 0 if grids is None or inputs.get("pixel_values") is None else len(grids)

    def packs_pictures(self, config: Any) -> bool:
        """One picture after the other, each attending to itself only."""
        return True

    def select_pictures(
        self, tensors: Mapping[str, Tensor], pictures: Sequence[ImageLayout], numbers: Sequence[int]
    ) -> dict[str, Tensor] | None:
        """Their patches and the shapes of their grids."""
        grids = tensors["image_grid_thw"]
        patches = by_stretches(tensors["pixel_values"], grids.prod(-1).tolist(), numbers)
        return {"pixel_values": patches, "image_grid_thw": grids[list(numbers)]}

    def pictures(self, batch: PictureBatch) -> list[Picture]:
        """Each picture's grid stands in `image_grid_thw`; blocks of it stand in the text."""
        config = batch.config.vision_config
        grids, merge = batch.inputs["image_grid_thw"].cpu(), config.spatial_merge_size
        patches = len(batch.inputs["pixel_values"])
        if int(grids.prod(-1).sum()) != patches or (grids[:, 0] != 1).any():
            raise PromptError(
                f"image_grid_thw speaks of {grids.tolist()} patches; pixel_values holds {patches}."
            )
        block_at = self.merged_order(config, grids).tolist()
        pictures, first = [], 0
        for number, (rows, cols) in enumerate(grids[:, 1:].tolist()):
            pixels = batch.stretched(number, (cols * config.patch_size, rows * config.patch_size))
            coarse = (rows // merge, cols // merge)
            tower = [
                block_at[first + (r // merge) * coarse[1] + c // merge] * merge**2
                + (r % merge) * merge
                + c % merge
                for r in range(rows)
                for c in range(cols)
            ]
            n_tokens = coarse[0] * coarse[1]
            blocks = range(first, first := first + n_tokens)
            pictures.append(
                Picture(
                    n_tokens,
                    grid(*coarse, 0, 0, pixels),
                    packed_space(rows, cols, tower, pixels),
                    packed_space(*coarse, blocks, pixels),
                )
            )
        return pictures

    def brackets(self, batch: PictureBatch) -> Brackets:
        """The tokens that `marks` names."""
        opening, closing = (getattr(batch.config, name, None) for name in self.marks)
        return (opening,), (closing,)


def _point(name: str, axis: str, width: int, doc: str, site: Site, space: str) -> Point:
    return Point(name, ("image", "pos", axis), (1, None, width), doc, in_one_row(site), space)
