"""What a family says of its models, and the points every stack of transformer blocks has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_lens.config import HookedConfig, StackConfig
from vlm_lens.errors import PromptError
from vlm_lens.layout import ImageLayout
from vlm_lens.points import Point, PointTable
from vlm_lens.sites import AttentionSite, HeadView, InputSite, MidSite, OutputSite, Site


@dataclass(frozen=True)
class BlockParts:
    """The names of a block's modules, for blocks of the form attention, then MLP, each added.

    `mlp_pre` is the layer whose output enters the non-linearity, `mlp_linear` the other branch of
    a gated MLP (`None` without one), `mlp_post` the layer that the non-linearity's result enters.
    """

    ln1: str
    attn: str
    q: str
    k: str
    v: str
    o: str
    ln2: str
    mlp: str
    mlp_pre: str
    mlp_post: str
    mlp_linear: str | None = None


@dataclass(frozen=True)
class Stack:
    """One stack of blocks: where it is and how large.

    Attributes:
        path: Path of the list of blocks.
        parts: The names within a block.
        size: Its sizes.
        prefix: What its point names start with: nothing, or `vision.`.
        space: Whose positions it counts.
        unread_from: Blocks from this one on run but are not read by what follows.
        unread: Why not.
    """

    path: str
    parts: BlockParts
    size: StackConfig
    prefix: str = ""
    space: str = "text"
    unread_from: int | None = None
    unread: str = ""

    def points(self) -> Iterator[Point]:
        """The points of every block, in the order in which they are computed."""
        for layer in range(self.size.n_layers):
            dead = self.unread_from is not None and layer >= self.unread_from
            yield from self._block(layer, self.unread if dead else "")

    def _block(self, layer: int, read_only: str) -> Iterator[Point]:
        parts, size = self.parts, self.size
        block = f"{self.path}.{layer}"
        batch = "batch" if self.space == "text" else "image"
        d = "d_model" if self.space == "text" else "d_vision"
        heads = HeadView(size.n_heads, size.d_head)
        kv_heads = HeadView(size.n_key_value_heads, size.d_head)

        def point(
            name: str, last: Sequence[str], sizes: Sequence[int | None], doc: str, site: Site
        ) -> Point:
            pattern = last[0] == "head" and last[1] == "query"
            axes = (batch, *last) if pattern else (batch, "pos", *last)
            lead = (None,) if pattern else (None, None)
            return Point(
                f"{self.prefix}blocks.{layer}.{name}", axes, (*lead, *sizes), doc, site,
                self.space, read_only,
            )  # fmt: skip

        def wide(
            name: str, doc: str, site: Site, width: int = size.d_model, axis: str = d
        ) -> Point:
            return point(name, (axis,), (width,), doc, site)

        def headed(name: str, doc: str, site: Site, n_heads: int = size.n_heads) -> Point:
            return point(name, ("head", "d_head"), (n_heads, size.d_head), doc, site)

        def square(name: str, doc: str, stage: str) -> Point:
            site = AttentionSite(f"{block}.{parts.attn}", stage)
            return point(name, ("head", "query", "key"), (size.n_heads, None, None), doc, site)

        attn, mlp = f"{block}.{parts.attn}", f"{block}.{parts.mlp}"
        mlp_out = OutputSite(mlp)
        ln2 = InputSite(f"{block}.{parts.ln2}")
        yield wide("hook_resid_pre", "Residual stream entering the block", InputSite(block))
        yield wide("ln1.hook_normalized", "What attention reads: the first norm's output, its "
                   "weight and bias applied", OutputSite(f"{block}.{parts.ln1}"))  # fmt: skip
        yield headed("attn.hook_q", "Queries, before rotary embedding",
                     OutputSite(f"{attn}.{parts.q}", view=heads))  # fmt: skip
        yield headed("attn.hook_k", "Keys, before rotary embedding",
                     OutputSite(f"{attn}.{parts.k}", view=kv_heads), kv_heads.n_heads)  # fmt: skip
        yield headed("attn.hook_v", "Values", OutputSite(f"{attn}.{parts.v}", view=kv_heads),
                     kv_heads.n_heads)  # fmt: skip
        yield square("attn.hook_attn_scores", "Attention scores, scaled and masked, before softmax",
                     "scores")  # fmt: skip
        yield square("attn.hook_pattern", "Attention pattern: each query's weights over keys",
                     "pattern")  # fmt: skip
        yield headed("attn.hook_z", "Each head's mixed values, before the output projection",
                     InputSite(f"{attn}.{parts.o}", view=heads))  # fmt: skip
        yield wide("hook_attn_out", "What attention adds to the residual stream", OutputSite(attn))
        yield wide("hook_resid_mid", "Residual stream between attention and MLP",
                   MidSite(ln2, mlp_out, OutputSite(block)))  # fmt: skip
        yield wide("ln2.hook_normalized", "What the MLP reads: the second norm's output, its "
                   "weight and bias applied", OutputSite(ln2.module))  # fmt: skip
        d_mlp = {"width": size.d_mlp, "axis": "d_mlp"}
        yield wide("mlp.hook_pre", "MLP neurons before the non-linearity",
                   OutputSite(f"{mlp}.{parts.mlp_pre}"), **d_mlp)  # fmt: skip
        if parts.mlp_linear:
            yield wide("mlp.hook_pre_linear", "The gated MLP's linear branch",
                       OutputSite(f"{mlp}.{parts.mlp_linear}"), **d_mlp)  # fmt: skip
        yield wide("mlp.hook_post", "MLP neurons after the non-linearity (and the gate)",
                   InputSite(f"{mlp}.{parts.mlp_post}", keyword="input"), **d_mlp)  # fmt: skip
        yield wide("hook_mlp_out", "What the MLP adds to the residual stream", mlp_out)
        yield wide("hook_resid_post", "Residual stream leaving the block", OutputSite(block))


@dataclass(frozen=True)
class Architecture:
    """Where a model's parts are.

    Attributes:
        cfg: Its sizes.
        points: Its points.
        final_norm: Path of the language model's final norm.
        unembed: Path of the layer that gives logits.
        image_token_id: The token that stands for a patch of a picture, if any.
    """

    cfg: HookedConfig
    points: PointTable
    final_norm: str
    unembed: str
    image_token_id: int | None = None


class Family(ABC):
    """An architecture family: knows where its models keep things, and nothing of experiments.

    Attributes:
        name: Its name.
        model_types: The values of Hugging Face's `config.model_type` that it describes.
        takes_images: Whether its models read pictures.
        residual_breaks: Why what leaves a block is not what enters the next one, where so.
    """

    name: str
    model_types: tuple[str, ...]
    takes_images: bool = False
    residual_breaks: str = ""

    @abstractmethod
    def architecture(self, model: torch.nn.Module) -> Architecture:
        """The parts of a loaded model."""

    def placeholder(self, processor: Any) -> str:
        """The text by which this family's processor marks a picture's place."""
        raise PromptError(f"{self.name} is a language model without vision: it takes no pictures.")

    def count_images(self, inputs: Mapping[str, Tensor]) -> int:
        """How many pictures a processor's tensors hold."""
        return 0

    def image_layouts(
        self,
        model: torch.nn.Module,
        arch: Architecture,
        inputs: Mapping[str, Tensor],
        *,
        processor: Any = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[list[ImageLayout]]:
        """Where the pictures stand, for each row of a batch.

        Args:
            model: The model.
            arch: Its parts.
            inputs: The processor's tensors.
            processor: The processor, for its resize and crop; without it, and without sizes, pixels
                are those of the frame that the model sees.
            sizes: Width and height of each picture of the batch, as given.

        Raises:
            PromptError: Image tokens and pictures do not match.
        """
        return [[] for _ in inputs["input_ids"]]
