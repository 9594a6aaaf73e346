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
from vlm_lens.families.base import (
    Architecture,
    BlockParts,
    Family,
    SiteMaker,
    Stack,
    in_one_row,
)
from vlm_lens.families.parts.decoders import find_decoder, text_point
from vlm_lens.families.parts.pixels import identity_map, stretch_map
from vlm_lens.families.parts.places import picture_places
from vlm_lens.families.parts.selection import by_stretches
from vlm_lens.layout.geometry import PatchGrid
from vlm_lens.layout.layout import ImageLayout, ImageSpace
from vlm_lens.points.config import HookedConfig, StackConfig, VisionConfig
from vlm_lens.points.point import Point
from vlm_lens.points.sites import AttentionSite, FusedHeadView, InputSite, OutputSite, Site
from vlm_lens.points.table import PointTable

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
        decoder = find_decoder(config.text_config, TEXT)
        size, d_vocab = decoder.stack.size, config.text_config.vocab_size
        vision = self._tower(tower)
        points = [
            decoder.embedding_point(),
            _point("vision.hook_embed", "d_vision", vision.size.d_model, "Patch embeddings as the "
                   "first block reads them", InputSite(f"{vision.path}.0"), "vision"),
            *vision.points(),
            _point("vision.hook_out", "d_vision", vision.size.d_model,
                   "The tower's features that the projector reads", self.tower_reads, "vision"),
            _point("projector.hook_in", "d_vision", vision.size.d_model, "What the projector "
                   "reads: one row a patch, in the tower's order", self.tower_reads, "vision"),
            *self.more_points(size.d_model, tower),
            _point("projector.hook_out", "d_model", size.d_model, "Picture features in the "
                   "language model's width: one row a block of patches",
                   OutputSite(TOWER, path=("pooler_output",)), "projector"),
            text_point("hook_merged", size.d_model, "The language model's input: embeddings "
                       "with picture features in their places",
                       InputSite(TEXT, keyword="inputs_embeds", index=4)),
            *decoder.stack.points(),
            *decoder.closing_points(d_vocab),
        ]  # fmt: skip
        cfg = HookedConfig(
            model_name=config.name_or_path or type(model).__name__,
            family=self.name,
            d_vocab=d_vocab,
            vision=VisionConfig(
                **asdict(vision.size),
                patch_size=tower.patch_size,
                image_size=None,
                n_class_tokens=0,
                n_layers_read=vision.size.n_layers,
            ),
            **asdict(size),
        )
        missing = {**decoder.stack.missing(), **vision.missing()}
        return Architecture(
            cfg, PointTable(points, missing), decoder, "lm_head", config.image_token_id
        )

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

    def count_images(self, inputs: Mapping[str, Tensor]) -> int:
        """One row of `image_grid_thw` a picture."""
        grids = inputs.get("image_grid_thw")
        return 0 if grids is None else len(grids)

    def packs_pictures(self, config: Any) -> bool:
        """One picture after the other, each attending to itself only."""
        return True

    def select_pictures(
        self,
        config: Any,
        tensors: Mapping[str, Tensor],
        pictures: Sequence[ImageLayout],
        numbers: Sequence[int],
    ) -> dict[str, Tensor] | None:
        """Their patches and the shapes of their grids."""
        grids = tensors["image_grid_thw"]
        patches = by_stretches(tensors["pixel_values"], grids.prod(-1).tolist(), numbers)
        return {"pixel_values": patches, "image_grid_thw": grids[list(numbers)]}

    def image_layouts(
        self,
        model: torch.nn.Module,
        arch: Architecture,
        inputs: Mapping[str, Tensor],
        *,
        processor: Any = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[list[ImageLayout]]:
        """Each picture's grid stands in `image_grid_thw`; blocks of it stand in the text."""
        config = model.config.vision_config
        marks = inputs["input_ids"] == arch.image_token_id
        n_images = self.count_images(inputs) if inputs.get("pixel_values") is not None else 0
        if not n_images:
            return [[] for _ in picture_places(marks, [])]
        grids, merge = inputs["image_grid_thw"].cpu(), config.spatial_merge_size
        patches = len(inputs["pixel_values"])
        if int(grids.prod(-1).sum()) != patches or (grids[:, 0] != 1).any():
            raise PromptError(
                f"image_grid_thw speaks of {grids.tolist()} patches; pixel_values holds {patches}."
            )
        counts = (grids.prod(-1) // merge**2).tolist()
        block_at = self.merged_order(config, grids).tolist()
        opening, closing = (getattr(model.config, name, None) for name in self.marks)
        number = first = 0
        layouts = []
        for row, pictures in enumerate(picture_places(marks, counts)):
            images = []
            for index, places in enumerate(pictures):
                rows, cols = grids[number, 1:].tolist()
                frame = (cols * config.patch_size, rows * config.patch_size)
                pixels = identity_map(frame) if sizes is None else stretch_map(
                    sizes[number], frame
                )  # fmt: skip
                blocks = range(first, first + len(places))
                coarse = (rows // merge, cols // merge)
                tower = [
                    block_at[first + (r // merge) * coarse[1] + c // merge] * merge**2
                    + (r % merge) * merge
                    + c % merge
                    for r in range(rows)
                    for c in range(cols)
                ]
                ids, whole = inputs["input_ids"][row], list(places)
                if places[0] and int(ids[places[0] - 1]) == opening:
                    whole.insert(0, places[0] - 1)
                if places[-1] + 1 < len(ids) and int(ids[places[-1] + 1]) == closing:
                    whole.append(places[-1] + 1)
                text = _space(*coarse, places, row, pixels)
                images.append(
                    ImageLayout(
                        index,
                        text=ImageSpace(text.grids, ((row, tuple(whole)),)),
                        vision=_space(rows, cols, tower, 0, pixels),
                        projector=_space(*coarse, blocks, 0, pixels),
                    )
                )
                number, first = number + 1, first + len(places)
            layouts.append(images)
        return layouts


def _space(rows: int, cols: int, positions: Sequence[int], row: int, pixels: Any) -> ImageSpace:
    grid = PatchGrid(rows, cols, tuple(positions), row, pixels)
    return ImageSpace((grid,), ((row, tuple(sorted(positions))),))


def _point(name: str, axis: str, width: int, doc: str, site: Site, space: str) -> Point:
    return Point(name, ("image", "pos", axis), (1, None, width), doc, in_one_row(site), space)
