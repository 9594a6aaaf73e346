"""Vision tower, projector, decoder: what the families share whose pictures stand in the text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vlm_lens.errors import PromptError
from vlm_lens.families.base import Architecture, Family, Stack
from vlm_lens.families.parts.decoders import Decoder, find_decoder, text_point
from vlm_lens.families.parts.selection import by_rows
from vlm_lens.families.parts.towers import Tower, describe_tower
from vlm_lens.layout.geometry import PatchGrid, PixelMap
from vlm_lens.layout.layout import ImageLayout, ImageSpace
from vlm_lens.points.config import HookedConfig, VisionConfig
from vlm_lens.points.point import Point
from vlm_lens.points.sites import InputSite, OutputSite, View
from vlm_lens.points.table import PointTable


@dataclass(frozen=True)
class Picture:
    """One picture of a batch, before its place in the text is known.

    Attributes:
        n_tokens: How many image tokens it has in the text.
        grids: Its patches among them, counted from its own first token.
        vision: It in the tower.
        projector: It in the projector's output.
        why_no_grid: Why no token holds a single patch, if so.
    """

    n_tokens: int
    grids: tuple[PatchGrid, ...]
    vision: ImageSpace
    projector: ImageSpace
    why_no_grid: str = ""


class ProjectedFamily(Family):
    """A family with a tower, a projector and a text model, each a module of its own.

    Attributes:
        tower_path: Path of the tower.
        projector_path: Path of the projector.
        text_path: Path of the text model.
        reads_normed: Whether the projector reads the tower's features after its final norm.
        merges: Whether the projector makes one position of several patches, so that what enters
            it counts the tower's positions.
        projector_input: Name of the argument by which the projector takes the features.
        projector_views: How what enters and what leaves the projector is shown.
    """

    takes_images = True
    not_separable = ""
    tower_path: str = "model.vision_tower"
    projector_path: str = "model.multi_modal_projector"
    text_path: str = "model.language_model"
    reads_normed: bool = False
    merges: bool = False
    projector_input: str = "image_features"
    projector_views: tuple[View | None, View | None] = (None, None)

    def architecture(self, model: torch.nn.Module) -> Architecture:
        """The parts of the model.

        `vision_feature_layer` says which hidden states the projector reads: for LLaVA-1.5 that is
        -2, the last block but one, so that the last block runs without being read.
        """
        config = model.config
        tower = describe_tower(model.get_submodule(self.tower_path), config.vision_config)
        read = self.layers_read(config)
        n_read = max(read)
        decoder = self.decoder(config)
        text = decoder.stack
        d_vocab = config.text_config.vocab_size
        vision = Stack(
            tower.path(self.tower_path, tower.layers),
            tower.parts,
            tower.size,
            prefix="vision.",
            space="vision",
            unread_from=n_read,
            unread=f"the projector reads block {n_read - 1}, so nothing reads this one",
            sites=tower.sites,
        )
        points = [
            decoder.embedding_point(),
            *self._vision_points(vision, tower, config),
            *self.projector_points(config, tower.size.d_model * len(read)),
            text_point("hook_merged", text.size.d_model, "The language model's input: embeddings "
                       "with picture features in their places",
                       InputSite(self.text_path, keyword="inputs_embeds", index=4)),
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
                patch_size=_side(config.vision_config.patch_size),
                image_size=_side(config.vision_config.image_size),
                n_class_tokens=tower.n_class_tokens,
                n_layers_read=n_read,
            ),
            **asdict(text.size),
        )
        return Architecture(
            cfg, PointTable(points, missing), decoder, "lm_head", config.image_token_id
        )

    def decoder(self, config: Any) -> Decoder:
        """The text model."""
        return find_decoder(config.text_config, self.text_path)

    def layers_read(self, config: Any) -> list[int]:
        """Which hidden states the projector reads; 0 is the first block's input."""
        layers = config.vision_feature_layer
        total = config.vision_config.num_hidden_layers + 1
        return [i % total for i in ([layers] if isinstance(layers, int) else layers)]

    def features_path(self, config: Any) -> tuple[str | int, ...]:
        """Where the tower's output holds the features that the projector reads."""
        read = self.layers_read(config)
        return ("last_hidden_state",) if self.reads_normed else ("hidden_states", read[0])

    def _vision_points(self, stack: Stack, tower: Tower, config: Any) -> Iterator[Point]:
        def point(name: str, doc: str, site: InputSite | OutputSite) -> Point:
            axes, sizes = ("image", "pos", "d_vision"), (None, None, stack.size.d_model)
            return Point(f"vision.{name}", axes, sizes, doc, site, "vision")

        embed = OutputSite(tower.path(self.tower_path, tower.embed))
        yield point("hook_embed", tower.embed_doc, embed)
        yield from stack.points()
        if len(self.layers_read(config)) == 1:
            path = self.features_path(config)
            doc = "The tower's features that the projector reads"
            yield point("hook_out", doc, OutputSite(self.tower_path, path=path))

    def projector_points(self, config: Any, d_in: int) -> list[Point]:
        """What enters the projector, what leaves it, and what lies between, if anything.

        Args:
            config: The model's config.
            d_in: Width of what enters.
        """
        d_model = config.text_config.hidden_size
        before, after = self.projector_views
        entering = InputSite(self.projector_path, keyword=self.projector_input, view=before)
        leaving = OutputSite(self.projector_path, view=after)
        return [
            Point("projector.hook_in", ("image", "pos", "d_vision"), (None, None, d_in),
                  "What the projector reads: one row a patch", entering,
                  "vision" if self.merges else "projector"),
            Point("projector.hook_out", ("image", "pos", "d_model"), (None, None, d_model),
                  "Picture features in the language model's width", leaving, "projector"),
        ]  # fmt: skip

    def placeholder(self, processor: Any) -> str:
        """The processor's image token."""
        return processor.image_token

    def count_images(self, inputs: Mapping[str, Tensor]) -> int:
        """One row of `pixel_values` a picture."""
        pixels = inputs.get("pixel_values")
        return 0 if pixels is None else len(pixels)

    def select_pictures(
        self,
        config: Any,
        tensors: Mapping[str, Tensor],
        pictures: Sequence[ImageLayout],
        numbers: Sequence[int],
    ) -> dict[str, Tensor] | None:
        """Their rows; the towers read one picture, or one frame of it, apart from the others."""
        return by_rows(tensors, pictures, numbers)

    @abstractmethod
    def pictures(
        self,
        model: torch.nn.Module,
        arch: Architecture,
        inputs: Mapping[str, Tensor],
        processor: Any,
        sizes: Sequence[tuple[int, int]] | None,
    ) -> list[Picture]:
        """The pictures of a batch, in reading order; see `image_layouts`."""

    def brackets(self, config: Any, processor: Any) -> tuple[Collection[int], Collection[int]]:
        """Tokens that open a picture in the text, and tokens that close it, if any."""
        return (), ()

    def image_layouts(
        self,
        model: torch.nn.Module,
        arch: Architecture,
        inputs: Mapping[str, Tensor],
        *,
        processor: Any = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[list[ImageLayout]]:
        """The pictures take the image tokens of the text one after the other."""
        ids = inputs["input_ids"]
        found = int((ids == arch.image_token_id).sum())
        if not self.count_images(inputs):
            if found:
                raise PromptError(
                    f"The prompt holds {found} image tokens but no pixel_values: "
                    "give the pictures, vlm.prompt(text, images=[...])."
                )
            return [[] for _ in ids]
        pictures = self.pictures(model, arch, inputs, processor, sizes)
        counts = [p.n_tokens for p in pictures]
        if sum(counts) != found:
            each = f"{counts[0]}" if len(set(counts)) == 1 else "+".join(map(str, counts))
            raise PromptError(
                f"{len(pictures)} picture(s) of {each} patches need {sum(counts)} image tokens; "
                f"the prompt holds {found}. Write one <image> for each picture."
            )
        brackets = self.brackets(model.config, processor)
        queue = iter(pictures)
        rows = ids.tolist()
        return [_place(r, row, arch.image_token_id, queue, brackets) for r, row in enumerate(rows)]


def _side(size: Any) -> int:
    """The side of a square, which some configs write as two numbers."""
    return size if isinstance(size, int) else size[0]


def _place(
    row: int,
    ids: Sequence[int],
    image_token: int | None,
    pictures: Iterator[Picture],
    brackets: tuple[Collection[int], Collection[int]],
) -> list[ImageLayout]:
    opening, closing = brackets
    positions = [i for i, token in enumerate(ids) if token == image_token]
    images: list[ImageLayout] = []
    free = 0  # the first position after the picture before
    while positions:
        picture = next(pictures)
        mine, positions = positions[: picture.n_tokens], positions[picture.n_tokens :]
        if len(mine) < picture.n_tokens:
            raise PromptError(
                f"Text {row} of the batch ends within a picture of {picture.n_tokens} image "
                "tokens. Write one <image> for each picture."
            )
        start, end = mine[0], mine[-1] + 1
        start = next((i for i in range(start - 1, free - 1, -1) if ids[i] in opening), start)
        if end < len(ids) and ids[end] in closing:
            end += 1
        free = end
        grids = tuple(
            replace(g, positions=tuple(mine[i] for i in g.positions), row=row)
            for g in picture.grids
        )
        text = ImageSpace(grids, ((row, tuple(range(start, end))),), picture.why_no_grid)
        images.append(ImageLayout(len(images), text, picture.vision, picture.projector))
    return images


def grid(rows: int, cols: int, start: int, row: int, pixels: PixelMap) -> tuple[PatchGrid, ...]:
    """A grid at positions one after the other; none where there is no patch."""
    if not rows * cols:
        return ()
    return (PatchGrid(rows, cols, tuple(range(start, start + rows * cols)), row, pixels),)


def one_frame(
    number: int,
    rows: int,
    cols: int,
    pixels: PixelMap,
    *,
    n_class_tokens: int = 0,
    dropped: int = 0,
    merged: tuple[int, int] | None = None,
    after: PixelMap | None = None,
) -> Picture:
    """A picture that the tower sees in one frame.

    Args:
        number: Its number in the batch.
        rows: Patches from top to bottom in the tower.
        cols: Patches from left to right in the tower.
        pixels: How the picture became the frame.
        n_class_tokens: Positions of the tower before the first patch.
        dropped: How many of the tower's first positions do not enter the projector.
        merged: Rows and columns after the projector, where it merges patches.
        after: How the picture became the frame that they cover, if that is another one.
    """
    sequence = n_class_tokens + rows * cols
    seen = grid(rows, cols, n_class_tokens, number, pixels)
    vision = ImageSpace(seen, ((number, tuple(range(sequence))),))
    before = n_class_tokens - dropped  # class tokens that stay in front of the patches
    rows, cols = merged or (rows, cols)
    length = before + rows * cols
    sequences = ((number, tuple(range(length))),)
    if before < 0:
        why = "This model drops a patch as if it were a class token"
        return Picture(length, (), vision, ImageSpace((), sequences, why), why)
    grids = grid(rows, cols, before, number, after or pixels)
    return Picture(length, grids, vision, ImageSpace(grids, sequences))
