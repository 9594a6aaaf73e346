"""Vision tower, projector, decoder: what the families share whose pictures stand in the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_lens.families.parts.architecture import Architecture, assemble, embeddings_of
from vlm_lens.families.parts.decoders import Decoder
from vlm_lens.families.parts.family import Family
from vlm_lens.families.parts.found import text_model
from vlm_lens.families.parts.selection import by_rows
from vlm_lens.families.parts.towers import Tower, describe_tower, image_point, layers_read
from vlm_lens.layout.pictures import ImageLayout
from vlm_lens.points.point import Point
from vlm_lens.points.sites import InputSite, OutputSite, View


class ProjectedFamily(Family):
    """A family with a tower, a projector and a text model, each a module of its own.

    Attributes:
        tower_path: Path of the tower.
        projector_path: Path of the projector.
        text_path: Path of the text model.
        reads_normed: Whether the projector reads the tower's last features, after its final norm.
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
        stack, decoder = tower.stack(self.tower_path, max(read)), self.decoder(model)
        missing = tower.missing(stack)
        if len(read) > 1:
            missing["vision.hook_out"] = (
                f"its projector reads several layers at once ({config.vision_feature_layer}); "
                "use projector.hook_in."
            )
        return assemble(
            model, self.name, decoder, decoder.first_input or embeddings_of(self.text_path),
            before=[
                *tower.points(self.tower_path, stack),
                *self._features(tower, config),
                *self.projector_points(config, tower.size.d_model * len(read)),
            ],
            vision=tower.config(config.vision_config, max(read)),
            missing=missing, image_token_id=config.image_token_id,
        )  # fmt: skip

    def decoder(self, model: torch.nn.Module) -> Decoder:
        """The text model."""
        return text_model(model, self.text_path)

    def layers_read(self, config: Any) -> list[int]:
        """Which hidden states the projector reads; 0 is the first block's input."""
        if self.reads_normed:
            return [config.vision_config.num_hidden_layers]
        return layers_read(config, config.vision_config.num_hidden_layers)

    def features_path(self, config: Any) -> tuple[str | int, ...]:
        """Where the tower's output holds the features that the projector reads."""
        read = self.layers_read(config)
        return ("last_hidden_state",) if self.reads_normed else ("hidden_states", read[0])

    def _features(self, tower: Tower, config: Any) -> Iterator[Point]:
        if len(self.layers_read(config)) == 1 and not tower.unknown:
            site = OutputSite(self.tower_path, path=self.features_path(config))
            doc = "The tower's features that the projector reads"
            yield image_point("vision.hook_out", tower.size.d_model, doc, site)

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

    def select_pictures(
        self, tensors: Mapping[str, Tensor], pictures: Sequence[ImageLayout], numbers: Sequence[int]
    ) -> dict[str, Tensor] | None:
        """Their rows; the towers read one picture, or one frame of it, apart from the others."""
        return by_rows(tensors, pictures, numbers)
