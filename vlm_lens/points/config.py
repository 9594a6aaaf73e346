"""The numbers of a model, under TransformerLens's names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StackConfig:
    """The sizes of one stack of transformer blocks."""

    n_layers: int
    d_model: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_mlp: int


@dataclass(frozen=True)
class VisionConfig(StackConfig):
    """The sizes of a vision tower.

    Attributes:
        patch_size: Side of a patch in pixels of the frame that the processor makes.
        image_size: Side of that frame; `None` where each picture has a frame of its own.
        n_class_tokens: Positions of the tower's sequence before the first patch.
        n_layers_read: How many blocks lie on the way to the projector; a later one runs, but
            nothing reads it.
    """

    patch_size: int
    image_size: int | None
    n_class_tokens: int
    n_layers_read: int


@dataclass(frozen=True)
class HookedConfig(StackConfig):
    """The sizes of a model: the language model's own, and the tower's under `vision`."""

    model_name: str
    family: str
    d_vocab: int
    vision: VisionConfig | None = None
