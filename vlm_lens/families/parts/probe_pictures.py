"""Small pictures as tensors, in the forms in which image processors of transformers give them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

N_PICTURES = 2
_SIDE = 4  # patches along a side


@dataclass(frozen=True)
class ProbePictures:
    """Two pictures of noise, of the same size.

    Attributes:
        tensors: What the model's `get_image_features` takes.
        patches: Patches of each picture, where the tensors say so.
        frames: Frames of each picture: tiles, and a view of the whole.
    """

    tensors: dict[str, Tensor]
    patches: int | None = None
    frames: int = 1

    @property
    def area(self) -> int | None:
        """Pixels of each frame, where pictures are frames."""
        pixels = self.tensors.get("pixel_values")
        return None if pixels is None or pixels.dim() < 4 else pixels.shape[-2:].numel()


@contextmanager
def evaluating(model: nn.Module, *, graph: bool = False) -> Iterator[None]:
    """The model without dropout, while open; without a graph for gradients, if not asked for."""
    training = model.training
    model.eval()
    try:
        with torch.set_grad_enabled(graph):
            yield
    finally:
        model.train(training)


def features_function(model: nn.Module) -> Callable | None:
    """The model's own function from the tensors of pictures to what stands in the text."""
    for holder in (getattr(model, "model", None), model):
        if callable(found := getattr(holder, "get_image_features", None)):
            return found
    takes = inspect.signature(model.forward).parameters
    return _through_text(model) if "image_embeds_position_mask" in takes else None


def _through_text(model: nn.Module) -> Callable:
    """The forward of a model that has no such function, on a picture for each row of a text."""
    n_places = model.config.latent_query_num

    def run(**pictures: Tensor) -> Any:
        first = next(iter(pictures.values()))
        marks = torch.ones(len(first), n_places + 1, dtype=torch.long, device=first.device)
        marks[:, -1] = 0
        word = (getattr(model.config.get_text_config(), "pad_token_id", None) or 0) + 1
        return model(
            input_ids=torch.full_like(marks, word), image_embeds_position_mask=marks,
            use_cache=False, return_dict=True, **pictures,
        )  # fmt: skip

    run.__signature__ = inspect.signature(model.forward)  # type: ignore[attr-defined]
    return run


def probe_pictures(model: nn.Module, config: Any) -> Iterator[ProbePictures]:
    """Pictures in forms that the model may take, by the names of its arguments and its sizes.

    Args:
        model: The model.
        config: The config of its tower.
    """
    function = features_function(model)
    if function is None:
        return
    takes = inspect.signature(function).parameters
    patch = _side(getattr(config, "patch_size", None)) or 16
    channels = getattr(config, "num_channels", None) or getattr(config, "in_channels", None) or 3
    n, area, width = N_PICTURES, _SIDE**2, channels * patch**2
    source = torch.Generator().manual_seed(0)
    first = next(iter(model.parameters()))

    def noise(*shape: int) -> Tensor:
        x = torch.rand(shape, generator=source)
        return x.to(first.device, next(model.parameters()).dtype)

    def numbers(*row: int) -> Tensor:
        return torch.tensor([row] * n, device=first.device)

    if "image_grid_thw" in takes or "image_grid_hw" in takes:
        grids = {}
        if "image_grid_thw" in takes:
            grids["image_grid_thw"] = numbers(1, _SIDE, _SIDE)
        if "image_grid_hw" in takes:
            grids["image_grid_hw"] = numbers(_SIDE, _SIDE)
        if "image_merge_sizes" in takes:
            grids["image_merge_sizes"] = torch.full((n,), 2, device=first.device)
        times = getattr(config, "temporal_patch_size", None) or getattr(
            config, "patch_temporal", 1
        )  # fmt: skip
        for shape in (
            (n * area, times * width), (n * area, width), (n * area, 2 * width),
            (n * area, channels, patch, patch), (1, n * area, channels, patch, patch),
        ):  # fmt: skip
            yield ProbePictures({"pixel_values": noise(*shape), **grids}, area)
        return
    if "target_sizes" in takes:
        pixels = noise(1, channels, patch, n * area * patch)
        given = {"pixel_values": pixels, "target_sizes": numbers(_SIDE, _SIDE)}
        yield ProbePictures(given, area)
        return
    if "spatial_shapes" in takes:
        yield ProbePictures({
            "pixel_values": noise(n, area, width), "spatial_shapes": numbers(_SIDE, _SIDE),
            "pixel_attention_mask": torch.ones(n, area, device=first.device, dtype=torch.long),
        }, area)  # fmt: skip
        return
    if "flattened_patches" in takes:
        cells = torch.cartesian_prod(torch.arange(_SIDE), torch.arange(_SIDE)) + 1
        cells = cells.expand(n, -1, -1).to(first.device, first.dtype)
        inner = getattr(config, "patch_embed_hidden_size", None) or width
        for wide in dict.fromkeys((width, inner)):
            yield ProbePictures({"flattened_patches": torch.cat([cells, noise(n, area, wide)], -1)},
                                area)  # fmt: skip
        return
    if "image_token_pooling" in takes:  # which patches each token is made of; all of one size
        sides = getattr(config, "image_size", None)
        sides = sides if isinstance(sides, list | tuple) else [sides or _SIDE * patch] * 2
        area = (sides[0] // patch) * (sides[1] // patch)
        tokens = area // 4
        pooled = [torch.arange(4 * tokens).view(tokens, 4) + i * area for i in range(n)]
        yield ProbePictures({
            "pixel_values": noise(n, area, width), "image_grids": numbers(1, tokens, 0, 0),
            "image_token_pooling": torch.cat(pooled).to(first.device),
        }, area)  # fmt: skip
        return
    if "image_position_ids" in takes:
        side = getattr(config, "model_patch_size", None)
        width = width if side is None else channels * side**2
        cells = torch.cartesian_prod(torch.arange(_SIDE), torch.arange(_SIDE)).flip(-1)
        cells = cells.expand(n, -1, -1).to(first.device)
        yield ProbePictures(
            {"pixel_values": noise(n, area, width), "image_position_ids": cells}, area
        )
        return
    if "pixel_values" not in takes:
        return
    whole = _side(getattr(config, "image_size", None))
    pinpoints = getattr(model.config, "image_grid_pinpoints", None)
    if pinpoints and whole and "image_sizes" in takes:  # a view of the whole, and tiles
        height, width = pinpoints[0]
        tiles = 1 + (height // whole) * (width // whole)
        yield ProbePictures({"pixel_values": noise(n, tiles, channels, whole, whole),
                             "image_sizes": numbers(height, width)}, frames=tiles)  # fmt: skip
        return
    sides = [_SIDE * patch, whole]
    tokens = getattr(model.config, "vision_soft_tokens_per_image", None)
    if tokens and not whole:  # as many cells as a map must have, at the steps of usual towers
        sides += [isqrt(tokens) * step for step in (8, 16, 32)]
    for side in dict.fromkeys(s for s in sides if s):
        sizes = {"image_sizes": numbers(side, side)} if "image_sizes" in takes else {}
        if "qformer_input_ids" in takes:
            sizes["qformer_input_ids"] = numbers(1, 2)
        for shape in ((n, channels, side, side), (n, 1, channels, side, side)):
            pictures = {"pixel_values": noise(*shape), **sizes}
            if "pixel_attention_mask" in takes and len(shape) == 5:
                there = torch.ones(n, 1, device=first.device, dtype=torch.bool)
                yield ProbePictures(
                    pictures | {"pixel_attention_mask": there}, (side // patch) ** 2
                )
            yield ProbePictures(pictures, (side // patch) ** 2)


def beside_text(model: nn.Module, ids: Tensor) -> Iterator[dict[str, Tensor]]:
    """What a model that does not run on text alone may ask for beside it: a picture not shown.

    Args:
        model: The model.
        ids: Tokens, `[1, pos]`, none of which stands for a picture.
    """
    takes = inspect.signature(model.forward).parameters
    embedding: Any = model.get_input_embeddings()
    if "image_embeds" in takes and "image_embeds_position_mask" in takes:
        yield {"image_embeds": embedding.weight.new_zeros(1, 0, embedding.weight.shape[-1]),
               "image_embeds_position_mask": torch.zeros_like(ids).bool()}  # fmt: skip
    config = getattr(model.config, "vision_config", None)
    side = _side(getattr(config, "image_size", None))
    if side is None or "pixel_values" not in takes:
        return
    channels = getattr(config, "num_channels", None) or 3
    given: dict[str, Tensor] = {}
    if "qformer_input_ids" in takes:
        given["qformer_input_ids"] = ids
    if "image_attention_mask" in takes:
        given["image_attention_mask"] = ids.new_zeros(*ids.shape, 1)
    for shape in ((1, channels, side, side), (1, 1, channels, side, side)):
        yield {"pixel_values": embedding.weight.new_zeros(shape), **given}


def _side(size: Any) -> int | None:
    size = size[0] if isinstance(size, list | tuple) and size else size
    return size if isinstance(size, int) else None
